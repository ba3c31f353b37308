#include "tokenizer.h"

#include <algorithm>

#include "lit_sft/error.h"
#include "tokenizer_byte_bpe.h"
#include "tokenizer_sentencepiece.h"
#include "unicode.h"

namespace lit_sft {
namespace {

constexpr std::int64_t kVersion = 1;
constexpr std::int64_t kMostCharacters = 1024;  // held back

bool is_han(char32_t point) { return point >= 0x4E00 && point <= 0x9FFF; }

std::vector<std::pair<std::string, std::string>> texts_by_text(const JsonObject& parent, const char* key) {
    std::vector<std::pair<std::string, std::string>> found;
    for (const auto& pair : parent.at(key)) {
        if (!pair.is_array() || pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string())
            parent.refuse(key, "pairs of texts");
        found.emplace_back(pair[0].get<std::string>(), pair[1].get<std::string>());
    }
    return found;
}

Polish read_polish(const JsonObject& config) {
    const auto content = config.object("polish");
    Polish polish;
    polish.held_back = static_cast<std::size_t>(content.number("held_back", 0, kMostCharacters));
    polish.replaced = texts_by_text(content, "replace");
    for (const auto& [from, to] : texts_by_text(content, "beside_han")) {
        const auto half = code_points(from);
        const auto full = code_points(to);
        if (half.size() != 1 || full.size() != 1) content.refuse("beside_han", "pairs of characters");
        polish.replaced_by_han.emplace_back(half[0], full[0]);
    }
    return polish;
}

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::read(const std::filesystem::path& folder) {
    const auto config = JsonObject::read(folder / "tokenizer" / "config.json");
    config.check_version(kVersion);
    const auto kind = config.text("kind");
    if (kind == "sentencepiece") return std::make_unique<SentencePieceTokenizer>(config, folder / "tokenizer");
    if (kind == "byte-bpe") return std::make_unique<ByteBpeTokenizer>(config);
    config.refuse("kind", "sentencepiece or byte-bpe");
}

Tokenizer::Tokenizer(const JsonObject& config) : polish_(read_polish(config)) {
    for (const auto id : config.numbers("skipped", 0, kMostTokens)) skipped_.insert(id);
    const auto add_cut = [this](const std::string& text, std::optional<TokenId> token) {
        if (!text.empty()) cuts_[text[0]].push_back({text, token});
    };
    for (const auto& each : config.objects("added")) {
        const auto id = each.number("id", 0, kMostTokens);
        added_[id] = {each.text("text"), each.flag("lstrip"), each.flag("rstrip")};
        if (each.flag("parsed")) add_cut(added_[id].text, id);
    }
    if (config.has("split"))
        for (const auto& text : config.texts("split")) add_cut(text, std::nullopt);
    if (config.has("dropped"))
        for (const auto point : code_points(config.text("dropped"))) dropped_.push_back(utf8(point));
    for (auto& [first, cuts] : cuts_)
        std::ranges::stable_sort(cuts, [](const Cut& a, const Cut& b) { return a.text.size() > b.text.size(); });
}

TokenIds Tokenizer::encode(std::string_view text) const { return encode({{std::string(text), std::nullopt}}); }

TokenIds Tokenizer::encode(const std::vector<Part>& parts) const {
    std::vector<Part> pieces;
    for (const auto& part : parts) {
        if (part.token) {
            pieces.push_back(part);
            continue;
        }
        auto text = part.text;
        for (const auto& character : dropped_) text = replaced(text, character, "");
        cut(text, pieces);
    }
    swallow(pieces);
    TokenIds ids;
    for (const auto& piece : pieces) {
        if (piece.token) {
            ids.push_back(*piece.token);
        } else if (!piece.text.empty()) {
            const auto encoded = encode_plain(piece.text);
            ids.insert(ids.end(), encoded.begin(), encoded.end());
        }
    }
    return ids;
}

void Tokenizer::cut(std::string_view text, std::vector<Part>& parts) const {
    std::size_t begin = 0;
    const auto take = [&](std::size_t end) {
        if (end > begin) parts.push_back({std::string(text.substr(begin, end - begin)), std::nullopt});
    };
    for (std::size_t at = 0; at < text.size();) {
        const auto* found = cut_at(text.substr(at));
        if (found == nullptr) {
            ++at;
            continue;
        }
        take(at);
        parts.push_back({found->text, found->token});
        at += found->text.size();
        begin = at;
    }
    take(text.size());
}

const Tokenizer::Cut* Tokenizer::cut_at(std::string_view text) const {
    const auto cuts = cuts_.find(text[0]);
    if (cuts == cuts_.end()) return nullptr;
    const auto found = std::ranges::find_if(cuts->second, [&](const Cut& each) { return text.starts_with(each.text); });
    return found == cuts->second.end() ? nullptr : &*found;
}

void Tokenizer::swallow(std::vector<Part>& parts) const {
    const auto strip = [this](Part& part, bool from_left) {
        const auto found = part.token ? added_.find(*part.token) : added_.end();
        const std::string whole = found != added_.end() ? found->second.text : part.text;
        const std::string left(from_left ? without_blanks_left(whole) : without_blanks_right(whole));
        // A run of blanks that is swallowed is gone, and swallows nothing itself.
        if (!part.token || left.empty()) part = {left, std::nullopt};
    };
    for (std::size_t i = 0; i < parts.size(); ++i) {
        const auto token = parts[i].token ? added_.find(*parts[i].token) : added_.end();
        if (token == added_.end()) continue;
        if (token->second.swallows_right && i + 1 < parts.size()) strip(parts[i + 1], true);
        if (token->second.swallows_left && i > 0) strip(parts[i - 1], false);
    }
}

std::string Tokenizer::decode(std::span<const TokenId> ids) const {
    TokenIds kept;
    std::ranges::copy_if(ids, std::back_inserter(kept), [this](TokenId id) { return !skipped_.contains(id); });
    return std::string(stripped(joined(kept)));
}

std::string Tokenizer::polished(std::string_view answer) const {
    std::string text(stripped(answer));
    for (const auto& [from, to] : polish_.replaced) text = replaced(text, from, to);
    if (polish_.replaced_by_han.empty()) return text;
    const auto points = code_points(text);
    auto written = points;
    for (std::size_t i = 0; i < points.size(); ++i) {
        const bool is_beside = (i > 0 && is_han(points[i - 1])) || (i + 1 < points.size() && is_han(points[i + 1]));
        for (const auto& [half, full] : polish_.replaced_by_han)
            if (is_beside && points[i] == half) written[i] = full;
    }
    return utf8(written);
}

}  // namespace lit_sft
