#pragma once

#include <array>
#include <unordered_map>

#include "tokenizer.h"
#include "unicode.h"

namespace lit_sft {

/// Byte-level BPE with the pattern of GPT-2 (MOSS, and models of transformers).
class ByteBpeTokenizer : public Tokenizer {
   public:
    /// @throws UserError where the configuration is wrong.
    explicit ByteBpeTokenizer(const JsonObject& config);

   protected:
    [[nodiscard]] TokenIds encode_plain(std::string_view text) const override;
    [[nodiscard]] std::string joined(std::span<const TokenId> ids) const override;

   private:
    struct Merge {
        std::size_t rank = 0;
        TokenId merged = 0;
    };

    void read_merges(const JsonObject& config);
    [[nodiscard]] const Merge* merge_of(TokenId left, TokenId right) const;
    /// Where the word ends that begins at `at`, by the pattern of GPT-2.
    [[nodiscard]] std::size_t word_end(std::u32string_view text, std::size_t at) const;
    void encode_word(std::string_view word, TokenIds& ids) const;

    std::vector<std::string> pieces_;
    std::array<TokenId, 256> byte_ids_{};
    std::unordered_map<std::uint64_t, Merge> merges_;  ///< by left and right
    CodePoints letters_;
    CodePoints numbers_;
    CodePoints blanks_;
    bool joins_added_;  ///< decoding sets blanks between texts and added tokens
};

}  // namespace lit_sft
