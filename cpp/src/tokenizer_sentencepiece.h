#pragma once

#include <filesystem>
#include <memory>

#include "tokenizer.h"

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace lit_sft {

/// A sentencepiece model (Baichuan, all ChatGLMs). Control pieces, which no text produces, stand in the model as such.
class SentencePieceTokenizer : public Tokenizer {
   public:
    /// @throws UserError where `text.model` in the folder is not the one that the configuration was written with.
    SentencePieceTokenizer(const JsonObject& config, const std::filesystem::path& folder);
    ~SentencePieceTokenizer() override;

   protected:
    [[nodiscard]] TokenIds encode_plain(std::string_view text) const override;
    [[nodiscard]] std::string joined(std::span<const TokenId> ids) const override;

   private:
    /// Which blanks before a text decoding drops.
    enum class Prefix { no, one, all };

    [[nodiscard]] std::string decoded(std::span<const TokenId> ids) const;

    std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
    TokenId first_id_;
    bool writes_whitespace_;
    Prefix strips_;
    std::map<TokenId, std::string> texts_;  ///< of ids that have another than their piece
};

}  // namespace lit_sft
