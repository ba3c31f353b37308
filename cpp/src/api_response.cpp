#include "api_response.h"

#include <chrono>
#include <random>

namespace lit_sft {
namespace {

using nlohmann::json;

/// 128 bits from the system, as hexadecimal digits.
std::string new_id() {
    constexpr const char* kDigits = "0123456789abcdef";
    std::random_device device;
    std::string id(32, '0');
    for (auto& digit : id) digit = kDigits[device() & 15];
    return id;
}

json as_json(const Usage& usage) {
    return {{"prompt_tokens", usage.prompt_tokens},
            {"completion_tokens", usage.completion_tokens},
            {"total_tokens", usage.prompt_tokens + usage.completion_tokens}};
}

}  // namespace

ApiResponse::ApiResponse(std::string model, bool is_chat)
    : id_((is_chat ? "chatcmpl-" : "cmpl-") + new_id()),
      model_(std::move(model)),
      is_chat_(is_chat),
      created_(std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
                   .count()) {}

json ApiResponse::whole(const std::string& text, const char* reason, const Usage& usage) const {
    json said = is_chat_ ? json{{"message", {{"role", "assistant"}, {"content", text}}}} : json{{"text", text}};
    auto found = with_choice(is_chat_ ? "chat.completion" : "text_completion", std::move(said), reason);
    found["usage"] = as_json(usage);
    return found;
}

json ApiResponse::piece(const std::string& text, bool is_first) const {
    if (!is_chat_) return with_choice(chunk(), {{"text", text}}, nullptr);
    json delta = {{"content", text}};
    if (is_first) delta["role"] = "assistant";
    return with_choice(chunk(), {{"delta", std::move(delta)}}, nullptr);
}

json ApiResponse::end(const char* reason) const {
    return with_choice(chunk(), is_chat_ ? json{{"delta", json::object()}} : json{{"text", ""}}, reason);
}

json ApiResponse::usage(const Usage& usage) const {
    auto found = with_choice(chunk(), json::object(), nullptr);
    found["choices"] = json::array();
    found["usage"] = as_json(usage);
    return found;
}

json ApiResponse::with_choice(const char* object, json said, const char* reason) const {
    said["index"] = 0;
    said["logprobs"] = nullptr;
    said["finish_reason"] = reason ? json(reason) : json(nullptr);
    return {{"id", id_},
            {"object", object},
            {"created", created_},
            {"model", model_},
            {"choices", json::array({std::move(said)})}};
}

json api_error(const std::string& message, const char* type) {
    return {{"error", {{"message", message}, {"type", type}, {"param", nullptr}, {"code", nullptr}}}};
}

std::string written(const json& content) { return content.dump(-1, ' ', false, json::error_handler_t::replace); }

}  // namespace lit_sft
