#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "json_file.h"
#include "prompt.h"
#include "tokenizer.h"

namespace lit_sft {

/// Tokenizer and prompt format of a folder; of a model that takes ids only there are none.
class TextSide {
   public:
    explicit TextSide(const std::filesystem::path& folder);

    /// @throws UserError where the folder has none.
    [[nodiscard]] const Tokenizer& tokenizer() const;
    [[nodiscard]] const PromptFormat& format() const;

    /// Ids of a conversation up to where the assistant must speak.
    ///
    /// @throws UserError behind `where`, if the format cannot write it.
    [[nodiscard]] TokenIds prompt(const std::vector<Message>& messages, const std::string& where) const;

    /// Ids of the prompt, and of the answer that ends the conversation, its end included.
    ///
    /// @throws UserError if it ends with no answer, or begins otherwise with it than without.
    [[nodiscard]] std::pair<TokenIds, TokenIds> answered(const std::vector<Message>& messages,
                                                         const std::string& where) const;

   private:
    std::filesystem::path folder_;
    std::unique_ptr<Tokenizer> tokenizer_;
    std::optional<PromptFormat> format_;
};

/// Messages of `{"messages": [{"role", "content", ...}]}`, or of `{"prompt": ...}` with or without `system`.
///
/// @throws UserError naming the record and what is wrong with it.
std::vector<Message> read_messages(const JsonObject& record);

/// Where an answer ends before one of some texts; nothing if none stands in it.
std::optional<std::size_t> find_stop(const std::string& text, const std::vector<std::string>& stops);

}  // namespace lit_sft
