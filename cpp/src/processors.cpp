#include "processors.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <unordered_set>
#include <vector>

namespace lit_sft {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

float highest(std::span<const float> scores) { return *std::max_element(scores.begin(), scores.end()); }

}  // namespace

void log_softmax(std::span<float> scores) {
    const float top = highest(scores);
    double sum = 0;
    for (const float score : scores) sum += std::exp(score - top);
    const auto log_sum = static_cast<float>(std::log(sum));
    for (float& score : scores) score = score - top - log_sum;
}

void penalize_repetition(std::span<float> scores, std::span<const TokenId> seen, float penalty) {
    const std::unordered_set<TokenId> tokens(seen.begin(), seen.end());
    for (const auto token : tokens) {
        const auto at = static_cast<std::size_t>(token);
        if (at >= scores.size()) continue;
        scores[at] = scores[at] < 0 ? scores[at] * penalty : scores[at] / penalty;
    }
}

void forbid_repeated_ngrams(std::span<float> scores, std::span<const TokenId> seen, std::size_t size) {
    if (seen.size() + 1 < size) return;
    const auto last = seen.last(size - 1);
    for (std::size_t start = 0; start + size <= seen.size(); ++start) {
        const auto ngram = seen.subspan(start, size);
        const auto token = static_cast<std::size_t>(ngram.back());
        if (token < scores.size() && std::equal(last.begin(), last.end(), ngram.begin())) scores[token] = kNever;
    }
}

void keep_top_k(std::span<float> scores, std::size_t k) {
    if (k >= scores.size()) return;
    std::vector<float> sorted(scores.begin(), scores.end());
    const auto last = sorted.begin() + static_cast<std::ptrdiff_t>(k - 1);
    std::nth_element(sorted.begin(), last, sorted.end(), std::greater<>());
    for (float& score : scores)
        if (score < *last) score = kNever;
}

void keep_top_p(std::span<float> scores, double p) {
    std::vector<std::size_t> order(scores.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](auto one, auto other) { return scores[one] < scores[other]; });
    const float top = scores[order.back()];
    double sum = 0;
    for (const float score : scores) sum += std::exp(score - top);
    // In single precision, as torch compares, so that the same tokens stay.
    const auto most = static_cast<float>(1 - p);
    double reached = 0;
    for (std::size_t i = 0; i + 1 < order.size(); ++i) {
        reached += std::exp(scores[order[i]] - top) / static_cast<float>(sum);
        if (static_cast<float>(reached) > most) break;
        scores[order[i]] = kNever;
    }
}

std::size_t draw(std::span<const float> scores, double number) {
    const double top = highest(scores);
    double sum = 0;
    for (const float score : scores) sum += std::exp(score - top);
    std::vector<double> ends(scores.size());
    double end = 0;
    for (std::size_t i = 0; i < scores.size(); ++i) ends[i] = end += std::exp(scores[i] - top) / sum;
    // To the right of equal ends: a token without probability is never hit.
    const auto hit = std::upper_bound(ends.begin(), ends.end(), number * end);
    return std::min(static_cast<std::size_t>(hit - ends.begin()), scores.size() - 1);
}

void penalize(std::span<float> scores, std::span<const TokenId> seen, const Strategy& strategy) {
    if (strategy.repetition_penalty != 1)
        penalize_repetition(scores, seen, static_cast<float>(strategy.repetition_penalty));
    if (strategy.no_repeat_ngram_size > 0) forbid_repeated_ngrams(scores, seen, strategy.no_repeat_ngram_size);
}

void cut_off(std::span<float> scores, const Strategy& strategy) {
    if (strategy.temperature != 1)
        for (float& score : scores) score /= static_cast<float>(strategy.temperature);
    if (strategy.top_k > 0) keep_top_k(scores, strategy.top_k);
    if (strategy.top_p < 1) keep_top_p(scores, strategy.top_p);
}

}  // namespace lit_sft
