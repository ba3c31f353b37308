#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lit_sft {

/// How bytes that are not UTF-8 become U+FFFD.
enum class Replaced {
    longest_beginnings,  ///< one for the longest beginning of a character, as Python decodes with errors="replace"
    bytes,               ///< one for each byte, as sentencepiece does
};

constexpr char32_t kReplacement = 0xFFFD;

/// Code points of UTF-8.
std::u32string code_points(std::string_view text, Replaced replaced = Replaced::longest_beginnings);
std::string utf8(std::u32string_view text);
std::string utf8(char32_t point);

/// UTF-8 with U+FFFD for bytes that are none.
std::string well_formed(std::string_view bytes, Replaced replaced);

/// Bytes of the character that begins with this byte, in well-formed UTF-8.
std::size_t character_bytes(char first);

/// What Python's `str.strip` removes.
bool is_python_blank(char32_t point);
std::string_view without_blanks_left(std::string_view text);
std::string_view without_blanks_right(std::string_view text);
std::string_view stripped(std::string_view text);

std::string replaced(std::string_view text, std::string_view from, std::string_view to);

/// Text without what can move the cursor of a terminal, color, answer or reverse what it shows; tabs and new lines
/// stay.
std::string harmless(std::string_view text);

/// A set of code points: sorted stretches, first and last.
class CodePoints {
   public:
    CodePoints() = default;
    explicit CodePoints(std::vector<std::pair<char32_t, char32_t>> stretches) : stretches_(std::move(stretches)) {}
    [[nodiscard]] bool has(char32_t point) const;

   private:
    std::vector<std::pair<char32_t, char32_t>> stretches_;
};

}  // namespace lit_sft
