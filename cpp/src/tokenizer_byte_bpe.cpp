#include "tokenizer_byte_bpe.h"

#include <algorithm>
#include <queue>

#include "lit_sft/error.h"

namespace lit_sft {
namespace {

constexpr TokenId kNone = -1;
constexpr std::int64_t kLastCodePoint = 0x10FFFF;

CodePoints read_code_points(const JsonObject& config, const char* key) {
    std::vector<std::pair<char32_t, char32_t>> stretches;
    for (const auto& stretch : config.at(key)) {
        const JsonObject pair({{key, stretch}}, config.where());
        const auto ends = pair.numbers(key, 0, kLastCodePoint);
        if (ends.size() != 2 || ends[0] > ends[1] ||
            (!stretches.empty() && ends[0] <= static_cast<std::int64_t>(stretches.back().second)))
            pair.refuse(key, "stretches of code points, in order");
        stretches.emplace_back(static_cast<char32_t>(ends[0]), static_cast<char32_t>(ends[1]));
    }
    return CodePoints(std::move(stretches));
}

/// The bytes that a piece writes as characters.
std::string bytes_of(const JsonObject& config, const std::string& piece) {
    std::string bytes;
    for (const auto point : code_points(piece)) {
        if (point > 0xFF) config.refuse("pieces", "characters that are bytes");
        bytes += static_cast<char>(point);
    }
    return bytes;
}

std::uint64_t key_of(TokenId left, TokenId right) {
    return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint64_t>(right);
}

}  // namespace

ByteBpeTokenizer::ByteBpeTokenizer(const JsonObject& config)
    : Tokenizer(config),
      letters_(read_code_points(config, "letters")),
      numbers_(read_code_points(config, "numbers")),
      blanks_(read_code_points(config, "blanks")),
      joins_added_(config.flag("joins_added")) {
    byte_ids_.fill(kNone);
    for (const auto& piece : config.at("pieces")) {
        if (!piece.is_string() && !piece.is_null()) config.refuse("pieces", "a list of texts");
        auto bytes = piece.is_null() ? std::string() : bytes_of(config, piece.get<std::string>());
        if (bytes.size() == 1) byte_ids_[static_cast<std::uint8_t>(bytes[0])] = static_cast<TokenId>(pieces_.size());
        pieces_.push_back(std::move(bytes));
    }
    if (std::ranges::count(byte_ids_, kNone) > 0) config.refuse("pieces", "one for each byte");
    read_merges(config);
}

void ByteBpeTokenizer::read_merges(const JsonObject& config) {
    const auto most = static_cast<std::int64_t>(pieces_.size()) - 1;
    for (const auto& rule : config.at("merges")) {
        const JsonObject one({{"merges", rule}}, config.where());
        const auto ids = one.numbers("merges", 0, most);
        const auto piece = [&](std::size_t i) { return pieces_[static_cast<std::size_t>(ids[i])]; };
        if (ids.size() != 3 || piece(0) + piece(1) != piece(2))
            one.refuse("merges", "ids of two pieces and of both in one");
        merges_.try_emplace(key_of(ids[0], ids[1]), Merge{merges_.size(), ids[2]});
    }
}

const ByteBpeTokenizer::Merge* ByteBpeTokenizer::merge_of(TokenId left, TokenId right) const {
    const auto found = merges_.find(key_of(left, right));
    return found == merges_.end() ? nullptr : &found->second;
}

TokenIds ByteBpeTokenizer::encode_plain(std::string_view text) const {
    TokenIds ids;
    const auto points = code_points(text);
    std::size_t begin = 0;  // in bytes
    for (std::size_t at = 0; at < points.size();) {
        std::size_t end = begin;
        for (const auto next = word_end(points, at); at < next; ++at) end += character_bytes(text[end]);
        encode_word(text.substr(begin, end - begin), ids);
        begin = end;
    }
    return ids;
}

/// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
std::size_t ByteBpeTokenizer::word_end(std::u32string_view text, std::size_t at) const {
    for (const std::u32string_view ending : {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"})
        if (text.substr(at).starts_with(ending)) return at + ending.size();
    const auto kind = [&](std::size_t i) {
        return blanks_.has(text[i]) ? 'b' : letters_.has(text[i]) ? 'l' : numbers_.has(text[i]) ? 'n' : 'o';
    };
    const auto run_end = [&](std::size_t i) {
        auto end = i + 1;
        while (end < text.size() && kind(end) == kind(i)) ++end;
        return end;
    };
    if (kind(at) != 'b') return run_end(at);
    if (text[at] == U' ' && at + 1 < text.size() && kind(at + 1) != 'b') return run_end(at + 1);
    const auto end = run_end(at);
    // The last blank before a word belongs to the word, or is alone.
    return end == text.size() || end == at + 1 ? end : end - 1;
}

void ByteBpeTokenizer::encode_word(std::string_view word, TokenIds& ids) const {
    struct Symbol {
        TokenId id;
        std::ptrdiff_t previous;
        std::ptrdiff_t next;
    };
    struct Candidate {
        std::size_t rank;
        std::ptrdiff_t at;
        TokenId left, right, merged;
        bool operator>(const Candidate& other) const { return std::pair(rank, at) > std::pair(other.rank, other.at); }
    };
    std::vector<Symbol> symbols;
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> best;
    const auto size = static_cast<std::ptrdiff_t>(word.size());
    const auto consider = [&](std::ptrdiff_t left) {
        if (left < 0 || symbols[static_cast<std::size_t>(left)].next >= size) return;
        const auto& first = symbols[static_cast<std::size_t>(left)];
        const auto& second = symbols[static_cast<std::size_t>(first.next)];
        if (const auto* merge = merge_of(first.id, second.id))
            best.push({merge->rank, left, first.id, second.id, merge->merged});
    };
    for (std::ptrdiff_t i = 0; i < size; ++i)
        symbols.push_back({byte_ids_[static_cast<std::uint8_t>(word[static_cast<std::size_t>(i)])], i - 1, i + 1});
    for (std::ptrdiff_t i = 0; i + 1 < size; ++i) consider(i);
    while (!best.empty()) {
        const auto found = best.top();
        best.pop();
        auto& left = symbols[static_cast<std::size_t>(found.at)];
        // What was merged since has other ids.
        if (left.id != found.left || left.next >= size) continue;
        auto& right = symbols[static_cast<std::size_t>(left.next)];
        if (right.id != found.right) continue;
        left.id = found.merged;
        right.id = kNone;
        left.next = right.next;
        if (left.next < size) symbols[static_cast<std::size_t>(left.next)].previous = found.at;
        consider(left.previous);
        consider(found.at);
    }
    for (std::ptrdiff_t i = 0; i < size; i = symbols[static_cast<std::size_t>(i)].next)
        ids.push_back(symbols[static_cast<std::size_t>(i)].id);
}

std::string ByteBpeTokenizer::joined(std::span<const TokenId> ids) const {
    std::string text;
    std::string bytes;
    bool is_first = true;
    const auto add = [&](const std::string& part) {
        text += (is_first || !joins_added_ ? "" : " ") + part;
        is_first = false;
    };
    bool has_part = false;
    const auto end_part = [&] {
        if (has_part) add(well_formed(bytes, Replaced::longest_beginnings));
        bytes.clear();
        has_part = false;
    };
    for (const auto id : ids) {
        const auto token = added().find(id);
        const bool is_piece =
            id >= 0 && id < static_cast<TokenId>(pieces_.size()) && !pieces_[static_cast<std::size_t>(id)].empty();
        if (is_piece || token == added().end() || !joins_added_) {
            bytes += is_piece ? pieces_[static_cast<std::size_t>(id)] : "";
            has_part = true;
            continue;
        }
        end_part();
        add(token->second.text);
    }
    end_part();
    return text;
}

}  // namespace lit_sft
