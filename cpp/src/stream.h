#pragma once

#include <span>
#include <string>

#include "tokenizer.h"

namespace lit_sft {

/// An answer as it is written: whole characters only, no control tokens, and nothing that later tokens can change.
class AnswerStream {
   public:
    /// The tokenizer must live as long.
    ///
    /// @param for_terminal Whether characters that steer a terminal are left out.
    explicit AnswerStream(const Tokenizer& tokenizer, bool for_terminal = false)
        : tokenizer_(&tokenizer), for_terminal_(for_terminal) {}

    /// The text that new ids add, without those that end an answer.
    std::string push(std::span<const TokenId> ids);
    /// The rest.
    std::string finish();
    /// What was shown.
    [[nodiscard]] const std::string& text() const { return shown_; }

   private:
    [[nodiscard]] std::string whole() const;
    std::string show(std::string_view text);

    const Tokenizer* tokenizer_;
    bool for_terminal_;
    TokenIds ids_;
    std::string shown_;
};

}  // namespace lit_sft
