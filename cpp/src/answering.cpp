#include "answering.h"

namespace lit_sft {

std::span<const TokenId> said(const ChosenTokens& answer) {
    return std::span(answer.ids).first(answer.ids.size() - (answer.is_stopped ? 1 : 0));
}

TextAnswer text_of(const Answer& answer, const Tokenizer& tokenizer, const std::vector<std::string>& stop_texts) {
    TextAnswer found{tokenizer.decode(said(answer.tokens)), answer.reason};
    if (const auto end = find_stop(found.text, stop_texts)) {
        found.text.resize(*end);
        found.reason = FinishReason::stop;
    }
    return found;
}

bool is_unstopped(const ChosenTokens& answer, const Tokenizer& tokenizer, const std::vector<std::string>& stop_texts) {
    return stop_texts.empty() || !find_stop(tokenizer.decode(said(answer)), stop_texts);
}

}  // namespace lit_sft
