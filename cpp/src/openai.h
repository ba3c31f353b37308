#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "answering.h"

namespace lit_sft {

/// A request as the API of OpenAI has it, checked.
struct ApiRequest {
    Request request;
    std::vector<std::string> stop_texts;
    bool is_chat = true;
    bool is_streamed = false;
    bool wants_usage = false;  ///< of a streamed answer, behind its end
};

/// A body of /v1/chat/completions or /v1/completions.
///
/// @throws UserError naming the field that is wrong, or asks for what there is not.
ApiRequest read_api_request(const std::string& body, bool is_chat, const Model& model);

/// What an answer is written into; `id`, `model` and the time are the same in all its parts.
class ApiResponse {
   public:
    ApiResponse(std::string id, std::string model, bool is_chat);

    [[nodiscard]] nlohmann::json whole(const std::string& text, const Answer& answer, FinishReason reason,
                                       std::size_t num_prompt, const Tokenizer& tokenizer) const;
    /// The first of a streamed chat.
    [[nodiscard]] nlohmann::json first() const;
    [[nodiscard]] nlohmann::json piece(const std::string& text) const;
    [[nodiscard]] nlohmann::json last(FinishReason reason) const;
    [[nodiscard]] nlohmann::json usage(const Answer& answer, std::size_t num_prompt) const;

   private:
    [[nodiscard]] nlohmann::json with_choice(const char* object, nlohmann::json choice) const;

    std::string id_;
    std::string model_;
    bool is_chat_;
    std::int64_t created_;
};

nlohmann::json api_error(const std::string& message, const char* type = "invalid_request_error");

/// As it goes over the wire: UTF-8 whatever the model said.
std::string written(const nlohmann::json& content);

}  // namespace lit_sft
