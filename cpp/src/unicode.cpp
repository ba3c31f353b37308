#include "unicode.h"

#include <algorithm>
#include <cstdint>

namespace lit_sft {
namespace {

/// A character, or U+FFFD for bytes that begin none.
struct Decoded {
    char32_t point;
    std::size_t bytes;
};

/// The longest beginning of a character at `at` (Unicode 3.9, table 3-7).
Decoded decode_at(std::string_view text, std::size_t at, Replaced replaced) {
    const auto byte = [&](std::size_t offset) {
        return at + offset < text.size() ? static_cast<std::uint8_t>(text[at + offset]) : std::uint8_t{0};
    };
    const auto first = byte(0);
    if (first < 0x80) return {first, 1};
    const std::size_t length = first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
    if (length == 0) return {kReplacement, 1};
    // The second byte is narrower where the character would be too long, a surrogate or beyond the last one.
    const std::uint8_t least = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    const std::uint8_t most = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    char32_t point = first & (0xFFU >> (length + 1));
    for (std::size_t offset = 1; offset < length; ++offset) {
        const auto next = byte(offset);
        const bool goes_on = offset == 1 ? next >= least && next <= most : next >= 0x80 && next <= 0xBF;
        if (!goes_on) return {kReplacement, replaced == Replaced::bytes ? 1 : offset};
        point = point << 6 | (next & 0x3FU);
    }
    return {point, length};
}

}  // namespace

std::u32string code_points(std::string_view text, Replaced replaced) {
    std::u32string points;
    points.reserve(text.size());
    for (std::size_t at = 0; at < text.size();) {
        const auto [point, bytes] = decode_at(text, at, replaced);
        points += point;
        at += bytes;
    }
    return points;
}

std::string utf8(char32_t point) {
    const auto tail = [&](unsigned shift) { return static_cast<char>(0x80 | (point >> shift & 0x3F)); };
    if (point < 0x80) return {static_cast<char>(point)};
    if (point < 0x800) return {static_cast<char>(0xC0 | point >> 6), tail(0)};
    if (point < 0x10000) return {static_cast<char>(0xE0 | point >> 12), tail(6), tail(0)};
    return {static_cast<char>(0xF0 | point >> 18), tail(12), tail(6), tail(0)};
}

std::string utf8(std::u32string_view text) {
    std::string written;
    for (const auto point : text) written += utf8(point);
    return written;
}

std::string well_formed(std::string_view bytes, Replaced replaced) { return utf8(code_points(bytes, replaced)); }

std::size_t character_bytes(char first) {
    const auto byte = static_cast<std::uint8_t>(first);
    return byte < 0xC0 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

bool is_python_blank(char32_t point) {
    return (point >= 0x09 && point <= 0x0D) || (point >= 0x1C && point <= 0x20) || point == 0x85 || point == 0xA0 ||
           point == 0x1680 || (point >= 0x2000 && point <= 0x200A) || point == 0x2028 || point == 0x2029 ||
           point == 0x202F || point == 0x205F || point == 0x3000;
}

std::string_view without_blanks_left(std::string_view text) {
    while (!text.empty()) {
        const auto [point, bytes] = decode_at(text, 0, Replaced::bytes);
        if (!is_python_blank(point)) break;
        text.remove_prefix(bytes);
    }
    return text;
}

std::string_view without_blanks_right(std::string_view text) {
    while (!text.empty()) {
        std::size_t bytes = 1;
        while (bytes < text.size() && bytes < 4 &&
               (static_cast<std::uint8_t>(text[text.size() - bytes]) & 0xC0) == 0x80)
            ++bytes;
        const auto last = decode_at(text, text.size() - bytes, Replaced::bytes);
        if (last.bytes != bytes || !is_python_blank(last.point)) break;
        text.remove_suffix(bytes);
    }
    return text;
}

std::string_view stripped(std::string_view text) { return without_blanks_right(without_blanks_left(text)); }

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
    std::string written;
    for (std::size_t at = 0; at < text.size();) {
        const auto found = from.empty() ? std::string_view::npos : text.find(from, at);
        written += text.substr(at, found - at);
        if (found == std::string_view::npos) break;
        written += to;
        at = found + from.size();
    }
    return written;
}

std::string harmless(std::string_view text) {
    const auto steers = [](char32_t p) {
        return (p < 0x20 && p != '\t' && p != '\n') || (p >= 0x7F && p <= 0x9F) || p == 0x61C || p == 0x200E ||
               p == 0x200F || (p >= 0x202A && p <= 0x202E) || (p >= 0x2066 && p <= 0x2069);
    };
    auto points = code_points(text);
    std::erase_if(points, steers);
    return utf8(points);
}

bool CodePoints::has(char32_t point) const {
    const auto after = std::upper_bound(stretches_.begin(), stretches_.end(), point,
                                        [](char32_t value, const auto& stretch) { return value < stretch.first; });
    return after != stretches_.begin() && point <= std::prev(after)->second;
}

}  // namespace lit_sft
