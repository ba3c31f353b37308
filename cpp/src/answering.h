#pragma once

#include <string>
#include <vector>

#include "model.h"

namespace lit_sft {

/// An answer as text, ended by a stop text too.
struct TextAnswer {
    std::string text;
    FinishReason reason = FinishReason::stop;
};

/// What people read of an answer: without the token that ended it, and nothing from the first stop text on.
TextAnswer text_of(const Answer& answer, const Tokenizer& tokenizer, const std::vector<std::string>& stop_texts);

/// Whether an answer that is being written has none of the stop texts yet.
bool is_unstopped(const ChosenTokens& answer, const Tokenizer& tokenizer, const std::vector<std::string>& stop_texts);

/// Ids without the token that ended them.
std::span<const TokenId> said(const ChosenTokens& answer);

}  // namespace lit_sft
