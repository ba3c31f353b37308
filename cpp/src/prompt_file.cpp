// Reading prompt.json.

#include <algorithm>
#include <array>
#include <span>
#include <string_view>

#include "lit_sft/error.h"
#include "prompt.h"
#include "unicode.h"

namespace lit_sft {
namespace {

constexpr std::int64_t kVersion = 1;
constexpr std::int64_t kMostLength = std::int64_t{1} << 30;  // tokens

constexpr auto kSlots = std::to_array<std::string_view>(
    {"content", "line", "stripped", "name", "thoughts", "commands", "n", "system", "asked"});
constexpr auto kConditions = std::to_array<std::string_view>(
    {"tool-message", "system-message", "system-message-not-first", "assistant-speaks-first", "roles-not-alternating"});
constexpr std::array kNames = {"start",      "system", "user", "assistant", "answered", "tool",   "call",
                               "no_results", "speak",  "ask",  "ask_later", "alone",    "answer", "end"};

bool is_one_of(std::string_view text, std::span<const std::string_view> known) {
    return std::ranges::find(known, text) != known.end();
}

Piece read_piece(const JsonObject& content, bool may_join) {
    Piece piece;
    piece.without_first_id = content.has("without_first_id") && content.flag("without_first_id");
    piece.continues = content.has("continues") && content.flag("continues");
    if (content.has("id")) {
        piece.token = content.number("id", 0, kMostTokens);
    } else if (content.has("text")) {
        piece.text = Template(content.text("text"), content);
    } else if (may_join && content.has("joined")) {
        for (const auto& each : content.objects("joined")) piece.joined.push_back(read_piece(each, false));
    } else {
        throw UserError(content.where() + ": a piece is neither a token nor a text; export the model again");
    }
    return piece;
}

}  // namespace

Template::Template(const std::string& text, const JsonObject& where) {
    stretches_.emplace_back();
    for (std::size_t at = 0; at < text.size(); ++at) {
        const auto character = text[at];
        if (character != '{' && character != '}') {
            stretches_.back().text += character;
        } else if (at + 1 < text.size() && text[at + 1] == character) {
            stretches_.back().text += character;
            ++at;
        } else {
            const auto end = text.find('}', at);
            if (character == '}' || end == std::string::npos) where.refuse("text", "slots in pairs of braces");
            const auto slot = text.substr(at + 1, end - at - 1);
            const auto bar = std::min(slot.find('|'), slot.size());
            if (!is_one_of(slot.substr(0, bar), kSlots)) where.refuse("text", "slots that there are");
            stretches_.push_back({bar < slot.size() ? slot.substr(bar + 1) : "", slot.substr(0, bar)});
            stretches_.emplace_back();
            at = end;
        }
    }
}

PromptFormat::PromptFormat(const std::filesystem::path& folder, const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {
    read(JsonObject::read(folder / "prompt.json"));
}

void PromptFormat::read(const JsonObject& data) {
    const auto has = [&](const char* key) { return data.has(key) && data.flag(key); };
    data.check_version(kVersion);
    name_ = data.text("format");
    const auto unit = data.text("unit");
    if (unit != "message" && unit != "turn") data.refuse("unit", "message or turn");
    by_turn_ = unit == "turn";
    whole_ = has("whole");
    if (data.has("refuse")) refuse_ = data.texts("refuse");
    if (std::ranges::any_of(refuse_, [](const auto& each) { return !is_one_of(each, kConditions); }))
        data.refuse("refuse", "conditions that there are");
    for (const auto* name : kNames) {
        if (!data.has(name)) continue;
        auto& pieces = pieces_[name];
        for (const auto& each : data.objects(name)) pieces.push_back(read_piece(each, true));
    }
    for (const auto* name : by_turn_ ? std::array{"ask", "answer"} : std::array{"user", "assistant"})
        data.require(name);
    if (pieces_.contains("call")) data.require("no_results");
    stop_ = data.numbers("stop", 0, kMostTokens);
    closing_ = data.numbers("closing", 0, kMostTokens);
    if (data.has("default_system")) default_system_ = data.text("default_system");
    default_unless_first_ = data.has("default_unless") && data.text("default_unless") == "first";
    needs_user_ = has("needs_user");
    always_calls_ = has("always_calls");
    always_speak_ = has("always_speak");
    if (data.has("first_number")) first_number_ = data.number("first_number", 0, kMostLength);
    if (data.has("system_end")) system_end_ = data.text("system_end");
    read_fit(data.object("fit"));
}

void PromptFormat::read_fit(const JsonObject& fit) {
    most_ = static_cast<std::size_t>(fit.number("most", 1, kMostLength));
    most_answered_ =
        fit.has("most_answered") ? static_cast<std::size_t>(fit.number("most_answered", 1, kMostLength)) : most_;
    const auto drop = fit.text("drop");
    if (drop != "rounds" && drop != "user" && drop != "turns") fit.refuse("drop", "rounds, user or turns");
    drop_ = drop == "rounds" ? Drop::rounds : drop == "user" ? Drop::user : Drop::turns;
    if (fit.has("counts_speak")) counts_speak_ = fit.flag("counts_speak");
    if (!fit.has("cut_left")) return;
    const auto cut = fit.text("cut_left");
    if (cut != "all" && cut != "history") fit.refuse("cut_left", "all or history");
    cut_left_ = cut == "all" ? CutLeft::all : CutLeft::history;
}

}  // namespace lit_sft
