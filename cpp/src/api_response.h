#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace lit_sft {

/// Tokens that were read and written.
struct Usage {
    std::size_t prompt_tokens = 0;
    std::size_t completion_tokens = 0;
};

/// What an answer is written into, as the API of OpenAI has it; id, model and time are the same in all its parts.
class ApiResponse {
   public:
    ApiResponse(std::string model, bool is_chat);

    /// An answer that was not streamed.
    [[nodiscard]] nlohmann::json whole(const std::string& text, const char* reason, const Usage& usage) const;
    /// A part of one that is; the first of a chat says who speaks.
    [[nodiscard]] nlohmann::json piece(const std::string& text, bool is_first) const;
    [[nodiscard]] nlohmann::json end(const char* reason) const;
    /// The last part, where it was asked for.
    [[nodiscard]] nlohmann::json usage(const Usage& usage) const;

   private:
    [[nodiscard]] nlohmann::json with_choice(const char* object, nlohmann::json said, const char* reason) const;
    [[nodiscard]] const char* chunk() const { return is_chat_ ? "chat.completion.chunk" : "text_completion"; }

    std::string id_;
    std::string model_;
    bool is_chat_;
    std::int64_t created_;
};

/// What is wrong, in the form that clients of OpenAI read.
nlohmann::json api_error(const std::string& message, const char* type = "invalid_request_error");

/// As it goes over the wire: UTF-8 whatever the model said.
std::string written(const nlohmann::json& content);

}  // namespace lit_sft
