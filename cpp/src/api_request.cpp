#include "api_request.h"

#include <algorithm>

#include "json_file.h"
#include "lit_sft/error.h"

namespace lit_sft {
namespace {

constexpr const char* kWhere = "request";
constexpr double kMostPenalty = 100;  // also of the temperature

// Keys of both kinds of requests; the last four do not change an answer.
constexpr std::initializer_list<const char*> kKeys = {"model",
                                                      "max_tokens",
                                                      "temperature",
                                                      "top_p",
                                                      "top_k",
                                                      "repetition_penalty",
                                                      "seed",
                                                      "stop",
                                                      "stream",
                                                      "stream_options",
                                                      "n",
                                                      "presence_penalty",
                                                      "frequency_penalty",
                                                      "user",
                                                      "metadata",
                                                      "store",
                                                      "service_tier"};

bool is_one_of(const std::string& key, std::initializer_list<const char*> keys) {
    return std::find(keys.begin(), keys.end(), key) != keys.end();
}

void refuse_unknown(const JsonObject& body, bool is_chat) {
    for (const auto& [key, value] : body.content().items()) {
        const bool is_own = is_chat ? is_one_of(key, {"messages", "max_completion_tokens"}) : key == "prompt";
        if (!is_own && !is_one_of(key, kKeys)) throw UserError(body.where() + ": " + key + " is not offered");
    }
}

/// Keys that many clients send with the value that changes nothing.
void check_neutral(const JsonObject& body) {
    if (body.has("n") && body.at("n") != 1) body.refuse("n", "1");
    for (const char* key : {"presence_penalty", "frequency_penalty"})
        if (body.has(key) && body.at(key) != 0) body.refuse(key, "0; repetition_penalty is offered");
}

/// Text, or a list of parts that are text.
std::string content_of(const JsonObject& message) {
    if (!message.at("content").is_array()) return message.text("content");
    std::string text;
    for (const auto& part : message.objects("content")) {
        if (part.text("type") != "text") part.refuse("type", "text");
        text += part.text("text");
    }
    return text;
}

std::vector<Message> messages_of(const JsonObject& body) {
    std::vector<Message> messages;
    for (const auto& each : body.objects("messages")) {
        auto role = each.text("role");
        if (role == "developer") role = "system";
        if (!is_one_of(role, {"system", "user", "assistant"}))
            each.refuse("role", "system, developer, user or assistant");
        for (const char* key : {"tool_calls", "tool_call_id", "function_call"})
            if (each.has(key)) throw UserError(each.where() + ": " + key + " is not offered");
        messages.push_back({role, content_of(each), {}, {}, {}});
    }
    if (messages.empty()) body.refuse("messages", "one message or more");
    return messages;
}

TokenIds prompt_of(const JsonObject& body, bool is_chat, const Model& model) {
    auto ids = is_chat ? model.text().prompt(messages_of(body), "messages")
                       : model.text().tokenizer().encode(body.text("prompt"));
    if (ids.empty()) throw UserError("prompt is empty");
    const auto most = model.generation().context_length;
    if (ids.size() >= most)
        throw UserError("the prompt has " + std::to_string(ids.size()) +
                        " tokens, which leave no room in a context of " + std::to_string(most));
    return ids;
}

void set_from(Strategy& strategy, const char* option, const JsonObject& body, const char* key) {
    if (!body.has(key)) return;
    const auto& value = body.at(key);
    if (is_one_of(key, {"temperature", "repetition_penalty"}) && value.is_number() && value > kMostPenalty)
        body.refuse(key, "at most 100");
    set_option(strategy, option, value, kWhere);
}

/// What the model was made to be asked with, and drawn from where the request says how; temperature 0 is greedy.
Strategy chosen_by(const JsonObject& body, const Strategy& of_model) {
    Strategy drawn{.kind = Strategy::Kind::sampling, .max_new_tokens = of_model.max_new_tokens};
    const bool is_cold = body.has("temperature") && body.at("temperature") == 0;
    for (const char* key : {"top_p", "top_k", "seed"}) set_from(drawn, key, body, key);
    if (!is_cold) set_from(drawn, "temperature", body, "temperature");
    if (!body.has("temperature") && !body.has("top_p") && !body.has("top_k")) {
        if (of_model.kind == Strategy::Kind::beam_search) return {.max_new_tokens = of_model.max_new_tokens};
        const auto seed = drawn.seed;
        drawn = of_model;
        if (body.has("seed")) drawn.seed = seed;
        return drawn;
    }
    if (is_cold) return {.max_new_tokens = of_model.max_new_tokens};
    if (drawn.top_k > 0 && drawn.top_p != 1) throw UserError("top_k and top_p are both given: give one of them");
    return drawn;
}

Strategy strategy_of(const JsonObject& body, const Model& model, std::size_t max_tokens) {
    auto strategy = chosen_by(body, model.generation().strategy);
    for (const char* key : {"max_tokens", "max_completion_tokens"}) set_from(strategy, "max_new_tokens", body, key);
    set_from(strategy, "repetition_penalty", body, "repetition_penalty");
    strategy.max_new_tokens = std::min(strategy.max_new_tokens, max_tokens);
    return strategy;
}

std::vector<std::string> stops_of(const JsonObject& body) {
    if (!body.has("stop")) return {};
    auto stops = body.at("stop").is_string() ? std::vector{body.text("stop")} : body.texts("stop");
    std::erase(stops, "");
    return stops;
}

}  // namespace

ApiRequest read_api_request(const std::string& body, bool is_chat, const Model& model, const ApiLimits& limits) {
    const auto given = JsonObject::parse(body, kWhere);
    refuse_unknown(given, is_chat);
    if (given.text("model") != limits.model) given.refuse("model", limits.model);
    check_neutral(given);
    ApiRequest found;
    found.is_chat = is_chat;
    found.is_streamed = given.has("stream") && given.flag("stream");
    if (given.has("stream_options")) {
        const auto options = given.object("stream_options");
        found.wants_usage = options.has("include_usage") && options.flag("include_usage");
    }
    found.stop_texts = stops_of(given);
    found.request.strategy = strategy_of(given, model, limits.max_tokens);
    found.request.stop = model.generation().stop;
    found.request.prompt = prompt_of(given, is_chat, model);
    found.num_prompt = found.request.prompt.size();
    return found;
}

}  // namespace lit_sft
