#include "stopped_text.h"

#include <algorithm>

#include "text_side.h"
#include "unicode.h"

namespace lit_sft {
namespace {

/// Bytes at the end of a text that one of the stops begins with, without being whole.
std::size_t length_of_beginning(const std::string& text, const std::vector<std::string>& stops) {
    std::size_t longest = 0;
    for (const auto& stop : stops)
        for (auto length = std::min(stop.size() - 1, text.size()); length > longest; --length)
            if (text.ends_with(std::string_view(stop).substr(0, length))) longest = length;
    return longest;
}

}  // namespace

std::string StoppedText::push(TokenId token) {
    if (is_stopped_) return "";
    ids_.push_back(token);
    auto whole = tokenizer_->decode(ids_);
    if (const auto end = find_stop(whole, stops_)) {
        is_stopped_ = true;
        whole.resize(*end);
        return give_out(whole);
    }
    // Bytes that are not a character yet decode to U+FFFD at the end.
    const auto replacement = utf8(kReplacement);
    while (whole.ends_with(replacement)) whole.resize(whole.size() - replacement.size());
    whole.resize(whole.size() - length_of_beginning(whole, stops_));
    return give_out(whole);
}

std::string StoppedText::finish() { return is_stopped_ ? "" : give_out(tokenizer_->decode(ids_)); }

std::string StoppedText::give_out(const std::string& whole) {
    if (whole.size() <= text_.size() || !whole.starts_with(text_)) return "";
    auto added = whole.substr(text_.size());
    text_ = whole;
    return added;
}

}  // namespace lit_sft
