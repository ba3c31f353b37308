#include "tokenizer_sentencepiece.h"

#include <sentencepiece_processor.h>

#include <charconv>

#include "lit_sft/error.h"
#include "sha256.h"
#include "unicode.h"

namespace lit_sft {
namespace {

constexpr std::size_t kMostModelBytes = std::size_t{64} << 20;
constexpr std::size_t kLongestBlank = 80;
constexpr std::string_view kBlank = "\xE2\x96\x81";  // U+2581, how sentencepiece writes one

/// Line ends, tabs and runs of blanks as the pieces that ChatGLM-6B has for them.
std::string write_whitespace(std::string_view text) {
    std::string written;
    for (std::size_t at = 0; at < text.size();) {
        if (text[at] == '\n') {
            written += "<n>";
        } else if (text[at] == '\t') {
            written += "<|tab|>";
        } else if (text[at] == ' ') {
            const auto end = std::min(text.find_first_not_of(' ', at), text.size());
            const auto length = std::min(end - at, kLongestBlank);
            written += length == 1 ? std::string(" ") : "<|blank_" + std::to_string(length) + "|>";
            at += length;
            continue;
        } else {
            written += text[at];
        }
        ++at;
    }
    return written;
}

std::string read_whitespace(std::string_view text) {
    auto read = replaced(replaced(text, "<n>", "\n"), "<|tab|>", "\t");
    for (std::size_t at = 0; (at = read.find("<|blank_", at)) != std::string::npos;) {
        const auto* digits = read.data() + at + 8;
        const auto* end = read.data() + read.size();
        std::size_t length = 0;
        const auto [rest, error] = std::from_chars(digits, end, length);
        const bool is_blank = error == std::errc() && *digits != '0' && length >= 2 && length <= kLongestBlank &&
                              std::string_view(rest, end).starts_with("|>");
        if (is_blank) {
            read.replace(at, static_cast<std::size_t>(rest - digits) + 10, length, ' ');
            at += length;
        } else {
            ++at;
        }
    }
    return read;
}

}  // namespace

SentencePieceTokenizer::SentencePieceTokenizer(const JsonObject& config, const std::filesystem::path& folder)
    : Tokenizer(config),
      processor_(std::make_unique<sentencepiece::SentencePieceProcessor>()),
      first_id_(config.number("first_id", 0, kMostTokens)),
      writes_whitespace_(config.flag("writes_whitespace")) {
    const auto file = folder / "text.model";
    const auto model = read_file(file, kMostModelBytes);
    // sentencepiece ends the process at some damages.
    if (sha256(model) != config.text("model_sha256"))
        throw UserError(file.string() +
                        " is not the model that config.json beside it was written with; export the "
                        "model again");
    if (!processor_->LoadFromSerializedProto(model).ok())
        throw UserError(file.string() + " is not a sentencepiece model; export the model again");
    const auto prefix = config.text("strips_prefix");
    if (prefix != "no" && prefix != "one" && prefix != "all") config.refuse("strips_prefix", "no, one or all");
    strips_ = prefix == "no" ? Prefix::no : prefix == "one" ? Prefix::one : Prefix::all;
    texts_ = config.texts_by_id("texts");
}

SentencePieceTokenizer::~SentencePieceTokenizer() = default;

TokenIds SentencePieceTokenizer::encode_plain(std::string_view text) const {
    std::vector<int> pieces;
    const auto status =
        writes_whitespace_ ? processor_->Encode(write_whitespace(text), &pieces) : processor_->Encode(text, &pieces);
    if (!status.ok()) throw UserError("a text cannot be encoded: " + status.ToString());
    TokenIds ids;
    ids.reserve(pieces.size());
    for (const auto piece : pieces) ids.push_back(first_id_ + piece);
    return ids;
}

std::string SentencePieceTokenizer::joined(std::span<const TokenId> ids) const {
    std::string text;
    TokenIds stretch;
    // Each stretch of pieces loses its own dummy prefix.
    for (const auto id : ids) {
        const auto token = added().find(id);
        if (token == added().end()) {
            stretch.push_back(id);
            continue;
        }
        text += decoded(stretch) + token->second.text;
        stretch.clear();
    }
    text += decoded(stretch);
    return writes_whitespace_ ? read_whitespace(text) : text;
}

std::string SentencePieceTokenizer::decoded(std::span<const TokenId> ids) const {
    std::string text;
    std::string bytes;
    bool is_begin = true;       // blanks of pieces are still those before the text
    bool was_stripped = false;  // the piece before lost its blank
    const auto end_bytes = [&] {
        text += well_formed(bytes, Replaced::bytes);
        bytes.clear();
    };
    for (const auto id : ids) {
        const auto other = texts_.find(id);
        const auto piece = id - first_id_;
        if (other == texts_.end() && (piece < 0 || piece >= processor_->GetPieceSize())) continue;
        if (other == texts_.end() && processor_->IsByte(static_cast<int>(piece))) {
            const auto& name = processor_->IdToPiece(static_cast<int>(piece));  // <0x0A>
            bytes += static_cast<char>(std::stoi(name.substr(3, 2), nullptr, 16));
            continue;
        }
        end_bytes();
        if (was_stripped || !text.empty()) is_begin = false;
        was_stripped = false;
        if (other != texts_.end()) {
            text += other->second;
            continue;
        }
        std::string_view said = processor_->IdToPiece(static_cast<int>(piece));
        if (is_begin && strips_ != Prefix::no && said.starts_with(kBlank)) {
            said.remove_prefix(kBlank.size());
            // Where all go, the next piece is still at the beginning.
            was_stripped = strips_ == Prefix::one;
        }
        text += replaced(said, kBlank, " ");
    }
    end_bytes();
    return text;
}

}  // namespace lit_sft
