#include "stream.h"

#include "unicode.h"

namespace lit_sft {

std::string AnswerStream::push(std::span<const TokenId> ids) {
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    const auto text = whole();
    std::size_t end = text.size();
    for (auto held = tokenizer_->polish().held_back; held > 0 && end > 0; --held) {
        do {
            --end;
        } while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80);
    }
    return show(std::string_view(text).substr(0, end));
}

std::string AnswerStream::finish() { return show(whole()); }

std::string AnswerStream::whole() const {
    auto text = tokenizer_->decode(ids_);
    if (for_terminal_) text = harmless(text);
    // Bytes that are not a character yet decode to U+FFFD at the end.
    const auto replacement = utf8(kReplacement);
    while (text.ends_with(replacement)) text.resize(text.size() - replacement.size());
    return tokenizer_->polished(text);
}

std::string AnswerStream::show(std::string_view text) {
    if (text.size() <= shown_.size() || !text.starts_with(shown_)) return "";
    std::string added(text.substr(shown_.size()));
    shown_ += added;
    return added;
}

}  // namespace lit_sft
