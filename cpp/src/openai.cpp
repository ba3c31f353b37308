#include "openai.h"

#include <chrono>

#include "error.h"
#include "json_file.h"

namespace lit_sft {
namespace {

using nlohmann::json;

constexpr const char* kAsTheyAre[] = {
    "repetition_penalty", "no_repeat_ngram_size", "num_beams", "length_penalty", "top_k", "top_p", "seed"};

/// Text, or a list of parts that are text.
std::string content_of(const JsonObject& message) {
    if (!message.has("content")) return {};
    if (message.at("content").is_string()) return message.text("content");
    std::string text;
    for (const auto& part : message.objects("content")) {
        if (part.text("type") != "text")
            throw UserError("messages: content of type " + part.text("type") + " is not read");
        text += part.text("text");
    }
    return text;
}

std::vector<Message> messages_of(const JsonObject& body) {
    std::vector<Message> messages;
    for (const auto& each : body.objects("messages")) {
        const auto role = each.text("role");
        if (role != "system" && role != "user" && role != "assistant" && role != "tool")
            throw UserError("messages: role must be system, user, assistant or tool");
        messages.push_back({role, content_of(each), {}, {}, each.has("name") ? each.text("name") : ""});
    }
    if (messages.empty()) throw UserError("messages is empty");
    return messages;
}

TokenIds prompt_of(const JsonObject& body, const Model& model) {
    const auto& prompt = body.at("prompt");
    if (prompt.is_string()) return model.text().tokenizer().encode(prompt.get<std::string>());
    return body.numbers("prompt", 0, kMostTokens);
}

/// That of the model, drawn from where the request says how; temperature 0 is greedy.
Strategy strategy_of(const JsonObject& body, const Model& model) {
    auto strategy = model.generation().strategy;
    const bool has_temperature = body.has("temperature") && body.at("temperature").is_number();
    const bool is_cold = has_temperature && body.at("temperature").get<double>() == 0;
    if (body.has("num_beams")) {
        strategy = {.kind = Strategy::Kind::beam_search, .max_new_tokens = strategy.max_new_tokens};
    } else if (is_cold) {
        strategy = {.max_new_tokens = strategy.max_new_tokens};
    } else if (strategy.kind != Strategy::Kind::sampling &&
               (body.has("temperature") || body.has("top_p") || body.has("top_k"))) {
        strategy = {.kind = Strategy::Kind::sampling, .max_new_tokens = strategy.max_new_tokens};
    }
    const bool is_drawn = strategy.kind == Strategy::Kind::sampling;
    for (const char* name : kAsTheyAre) {
        const std::string_view option = name;
        const bool is_of_drawing = option == "top_k" || option == "top_p" || option == "seed";
        if (body.has(name) && (is_drawn || !is_of_drawing)) set_option(strategy, name, body.at(name), body.where());
    }
    if (is_drawn && body.has("temperature")) set_option(strategy, "temperature", body.at("temperature"), body.where());
    for (const char* name : {"max_tokens", "max_completion_tokens"})
        if (body.has(name)) set_option(strategy, "max_new_tokens", body.at(name), body.where());
    return strategy;
}

std::vector<std::string> stops_of(const JsonObject& body) {
    if (!body.has("stop")) return {};
    auto stops = body.at("stop").is_string() ? std::vector{body.text("stop")} : body.texts("stop");
    std::erase(stops, "");
    return stops;
}

json usage_of(const Answer& answer, std::size_t num_prompt) {
    const auto num_new = answer.tokens.ids.size();
    return {{"prompt_tokens", num_prompt},
            {"completion_tokens", num_new},
            {"total_tokens", num_prompt + num_new},
            {"prompt_tokens_details", {{"cached_tokens", answer.num_reused}}}};
}

/// The API knows three, of which an answer of ours has two.
const char* api_name(FinishReason reason) {
    return reason == FinishReason::length || reason == FinishReason::prompt_too_long ? "length" : "stop";
}

}  // namespace

ApiRequest read_api_request(const std::string& body, bool is_chat, const Model& model) {
    auto parsed = json::parse(body, nullptr, false);
    if (!parsed.is_object()) throw UserError("the body is not a JSON object");
    const JsonObject given(std::move(parsed), "request", "");
    ApiRequest found;
    found.is_chat = is_chat;
    if (given.has("n") && given.at("n") != 1) throw UserError("request: n must be 1");
    if (given.has("stream")) found.is_streamed = given.flag("stream");
    if (given.has("stream_options") && given.object("stream_options").has("include_usage"))
        found.wants_usage = given.object("stream_options").flag("include_usage");
    if (given.has("logprobs")) {
        const auto& wanted = given.at("logprobs");
        found.request.wants_logprobs = wanted.is_boolean() ? wanted.get<bool>() : wanted.is_number();
    }
    found.stop_texts = stops_of(given);
    found.request.strategy = strategy_of(given, model);
    found.request.stop = model.generation().stop;
    found.request.prompt = is_chat ? model.text().prompt(messages_of(given), "messages") : prompt_of(given, model);
    if (found.request.prompt.size() >= model.generation().context_length)
        throw UserError("the prompt has " + std::to_string(found.request.prompt.size()) + " tokens, and the context " +
                        std::to_string(model.generation().context_length));
    if (!found.stop_texts.empty())
        found.request.goes_on = [stops = found.stop_texts, &model](const ChosenTokens& answer) {
            return is_unstopped(answer, model.text().tokenizer(), stops);
        };
    return found;
}

ApiResponse::ApiResponse(std::string id, std::string model, bool is_chat)
    : id_(std::move(id)),
      model_(std::move(model)),
      is_chat_(is_chat),
      created_(std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
                   .count()) {}

json ApiResponse::whole(const std::string& text, const Answer& answer, FinishReason reason, std::size_t num_prompt,
                        const Tokenizer& tokenizer) const {
    json choice = {{"index", 0}, {"finish_reason", api_name(reason)}, {"logprobs", nullptr}};
    if (is_chat_)
        choice["message"] = {{"role", "assistant"}, {"content", text}};
    else
        choice["text"] = text;
    if (!answer.tokens.logprobs.empty()) {
        json content = json::array();
        for (std::size_t i = 0; i < answer.tokens.ids.size(); ++i)
            content.push_back({{"token", tokenizer.decode(std::span(answer.tokens.ids).subspan(i, 1))},
                               {"logprob", answer.tokens.logprobs[i]},
                               {"top_logprobs", json::array()}});
        choice["logprobs"] = {{"content", content}};
        if (!is_chat_) choice["logprobs"] = {{"token_logprobs", answer.tokens.logprobs}};
    }
    auto found = with_choice(is_chat_ ? "chat.completion" : "text_completion", std::move(choice));
    found["usage"] = usage_of(answer, num_prompt);
    return found;
}

json ApiResponse::first() const {
    return with_choice("chat.completion.chunk",
                       {{"index", 0}, {"delta", {{"role", "assistant"}, {"content", ""}}}, {"finish_reason", nullptr}});
}

json ApiResponse::piece(const std::string& text) const {
    json choice = {{"index", 0}, {"finish_reason", nullptr}};
    if (is_chat_)
        choice["delta"] = {{"content", text}};
    else
        choice["text"] = text;
    return with_choice(is_chat_ ? "chat.completion.chunk" : "text_completion", std::move(choice));
}

json ApiResponse::last(FinishReason reason) const {
    json choice = {{"index", 0}, {"finish_reason", api_name(reason)}};
    if (is_chat_)
        choice["delta"] = json::object();
    else
        choice["text"] = "";
    return with_choice(is_chat_ ? "chat.completion.chunk" : "text_completion", std::move(choice));
}

json ApiResponse::usage(const Answer& answer, std::size_t num_prompt) const {
    json found = with_choice(is_chat_ ? "chat.completion.chunk" : "text_completion", nullptr);
    found["choices"] = json::array();
    found["usage"] = usage_of(answer, num_prompt);
    return found;
}

json ApiResponse::with_choice(const char* object, json choice) const {
    return {{"id", id_},
            {"object", object},
            {"created", created_},
            {"model", model_},
            {"choices", json::array({std::move(choice)})}};
}

json api_error(const std::string& message, const char* type) {
    return {{"error", {{"message", message}, {"type", type}, {"param", nullptr}, {"code", nullptr}}}};
}

std::string written(const json& content) { return content.dump(-1, ' ', false, json::error_handler_t::replace); }

}  // namespace lit_sft
