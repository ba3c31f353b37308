#pragma once

#include <cstddef>
#include <span>

#include "strategy.h"
#include "tokens.h"

namespace lit_sft {

/// Scores of all tokens [V] become log-probabilities.
void log_softmax(std::span<float> scores);

/// Keskar et al. 2019 (arXiv:1909.05858): scores of tokens that were seen move away from likely.
void penalize_repetition(std::span<float> scores, std::span<const TokenId> seen, float penalty);

/// Minus infinity for each token that would end a sequence of `size` tokens that was seen.
void forbid_repeated_ngrams(std::span<float> scores, std::span<const TokenId> seen, std::size_t size);

/// Minus infinity for all but the `k` best; those equal to the last of them stay.
void keep_top_k(std::span<float> scores, std::size_t k);

/// Minus infinity for the least likely that together have at most 1 - p.
void keep_top_p(std::span<float> scores, double p);

/// The token whose part of the line of probabilities a number from 0 up to 1 hits.
std::size_t draw(std::span<const float> scores, double number);

/// What looks at the tokens before: of any strategy.
void penalize(std::span<float> scores, std::span<const TokenId> seen, const Strategy& strategy);

/// What leaves some tokens to draw from, in the order of transformers: temperature, top-k, top-p.
void cut_off(std::span<float> scores, const Strategy& strategy);

}  // namespace lit_sft
