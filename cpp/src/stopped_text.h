#pragma once

#include <string>
#include <vector>

#include "tokenizer.h"

namespace lit_sft {

/// The text of an answer as it is written, up to the first of some texts that end it. What later tokens may change,
/// half a character or what may begin such a text, is held back.
class StoppedText {
   public:
    /// The tokenizer must live as long.
    StoppedText(const Tokenizer& tokenizer, std::vector<std::string> stops)
        : tokenizer_(&tokenizer), stops_(std::move(stops)) {}

    /// The text that one more token adds; tokens behind a text that ends the answer are not counted.
    std::string push(TokenId token);
    /// The rest.
    std::string finish();

    [[nodiscard]] bool is_stopped() const { return is_stopped_; }
    [[nodiscard]] const std::string& text() const { return text_; }  ///< all that was given out
    [[nodiscard]] std::size_t num_tokens() const { return ids_.size(); }

   private:
    std::string give_out(const std::string& whole);

    const Tokenizer* tokenizer_;
    std::vector<std::string> stops_;
    TokenIds ids_;
    std::string text_;
    bool is_stopped_ = false;
};

}  // namespace lit_sft
