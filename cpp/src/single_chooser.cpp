#include "single_chooser.h"

#include <algorithm>

#include "logits.h"
#include "processors.h"

namespace lit_sft {
namespace {

/// As Python writes a list, which is what `Sampling` seeds a prompt's generator by.
std::string seed_text(std::int64_t seed, const TokenIds& prompt) {
    auto text = std::to_string(seed) + " [";
    for (std::size_t i = 0; i < prompt.size(); ++i) text += (i ? ", " : "") + std::to_string(prompt[i]);
    return text + "]";
}

}  // namespace

SingleChooser::SingleChooser(const Strategy& strategy, const TokenIds& prompt, const TokenIds& stop, std::size_t room,
                             bool wants_logprobs)
    : strategy_(strategy), seen_(prompt), stop_(stop), room_(room), wants_logprobs_(wants_logprobs) {
    if (strategy.kind == Strategy::Kind::sampling) random_.emplace(seed_text(strategy.seed, prompt));
}

const NextTokens& SingleChooser::choose(std::span<const Logits> rows) {
    const auto logits = rows.front();
    refuse_nan(logits);
    std::vector<float> scores(logits.begin(), logits.end());
    penalize(scores, seen_, strategy_);
    std::size_t chosen = 0;
    if (random_) {
        cut_off(scores, strategy_);
        chosen = draw(scores, random_->random());
    } else {
        chosen = static_cast<std::size_t>(std::max_element(scores.begin(), scores.end()) - scores.begin());
    }
    const auto token = static_cast<TokenId>(chosen);
    seen_.push_back(token);
    answer_.ids.push_back(token);
    if (wants_logprobs_) answer_.logprobs.push_back(log_probability(logits, chosen));
    answer_.is_stopped = std::find(stop_.begin(), stop_.end(), token) != stop_.end();
    next_.tokens.front() = token;
    return next_;
}

}  // namespace lit_sft
