#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "json_file.h"
#include "tokens.h"

namespace lit_sft {

/// A token, or a text.
struct Part {
    std::string text;
    std::optional<TokenId> token;
};

/// What a chat makes of an answer beside removing blanks at its ends.
struct Polish {
    std::vector<std::pair<std::string, std::string>> replaced;   ///< texts, one after another
    std::vector<std::pair<char32_t, char32_t>> replaced_by_han;  ///< characters, beside a Chinese one only
    std::size_t held_back = 0;  ///< characters at the end of an unfinished answer that it may still change
};

/// The tokenizer of an exported folder: ids and texts of the original one. Several threads may use it at once.
class Tokenizer {
   public:
    /// Reads FOLDER/tokenizer.
    ///
    /// @throws UserError where a file is missing or wrong.
    static std::unique_ptr<Tokenizer> read(const std::filesystem::path& folder);

    Tokenizer(const Tokenizer&) = delete;
    Tokenizer& operator=(const Tokenizer&) = delete;
    virtual ~Tokenizer() = default;

    /// Ids of text that somebody wrote: no control token comes of it.
    [[nodiscard]] TokenIds encode(std::string_view text) const;
    /// Ids of texts and tokens in one go: a token may swallow blanks of the texts beside it.
    [[nodiscard]] TokenIds encode(const std::vector<Part>& parts) const;
    /// The text of an answer, without control tokens and blanks at its ends; bytes that are not a whole character
    /// become U+FFFD.
    [[nodiscard]] std::string decode(std::span<const TokenId> ids) const;
    /// What a chat shows of an answer.
    [[nodiscard]] std::string polished(std::string_view answer) const;
    [[nodiscard]] const Polish& polish() const { return polish_; }

   protected:
    struct Added {
        std::string text;
        bool swallows_left = false;
        bool swallows_right = false;
    };

    explicit Tokenizer(const JsonObject& config);

    [[nodiscard]] virtual TokenIds encode_plain(std::string_view text) const = 0;
    /// Text of ids, of which those that are skipped are gone.
    [[nodiscard]] virtual std::string joined(std::span<const TokenId> ids) const = 0;

    [[nodiscard]] const std::map<TokenId, Added>& added() const { return added_; }

   private:
    /// A text that is cut out: a token, or encoded on its own.
    struct Cut {
        std::string text;
        std::optional<TokenId> token;
    };

    void cut(std::string_view text, std::vector<Part>& parts) const;
    [[nodiscard]] const Cut* cut_at(std::string_view text) const;
    void swallow(std::vector<Part>& parts) const;

    std::map<TokenId, Added> added_;
    std::map<char, std::vector<Cut>> cuts_;  ///< by their first byte, the longest first
    std::vector<std::string> dropped_;       ///< characters that no text has
    std::set<TokenId> skipped_;              ///< what decoding leaves out
    Polish polish_;
};

}  // namespace lit_sft
