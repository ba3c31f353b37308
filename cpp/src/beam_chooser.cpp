#include "beam_chooser.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "logits.h"
#include "processors.h"

namespace lit_sft {
namespace {

// What transformers adds, in single precision, to scores that must not win.
constexpr float kLoses = -1.0e9F;

/// Indices of the `k` highest scores, the best first; of equal ones the first.
std::vector<std::size_t> top(const std::vector<float>& scores, std::size_t k) {
    std::vector<std::size_t> order(scores.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    k = std::min(k, order.size());
    std::partial_sort(
        order.begin(), order.begin() + static_cast<std::ptrdiff_t>(k), order.end(),
        [&](auto one, auto other) { return scores[one] != scores[other] ? scores[one] > scores[other] : one < other; });
    order.resize(k);
    return order;
}

}  // namespace

BeamChooser::BeamChooser(const Strategy& strategy, const TokenIds& prompt, const TokenIds& stop, std::size_t room,
                         bool wants_logprobs)
    : strategy_(strategy),
      prompt_(prompt),
      stop_(stop),
      room_(room),
      wants_logprobs_(wants_logprobs),
      running_(strategy.num_beams) {
    // All beams begin alike, so only the first may win.
    for (std::size_t i = 1; i < running_.size(); ++i) running_[i].score = kLoses;
    finished_.resize(strategy.num_beams);
    for (auto& beam : finished_) beam.score = kLoses;
}

const NextTokens& BeamChooser::choose(std::span<const Logits> rows) {
    for (const auto row : rows) refuse_nan(row);
    const auto candidates = best_continuations(rows);
    finish(candidates);
    run_on(candidates);
    // Before the first step there is one row, which all continue.
    if (rows.size() == 1) std::fill(next_.parents.begin(), next_.parents.end(), std::size_t{0});
    ++length_;
    is_improvable_ = is_improvable_ && can_improve();
    is_done_ = !is_improvable_ || std::all_of(candidates.begin(), candidates.end(), [](auto& it) { return it.ends; });
    if (is_done_) answer_ = finished_.front().chosen;
    return next_;
}

/// So many that enough of them go on, even if every stop token is among them.
std::vector<BeamChooser::Candidate> BeamChooser::best_continuations(std::span<const Logits> rows) const {
    const auto num_tokens = rows.front().size();
    std::vector<float> logprobs;
    std::vector<float> scores;
    for (std::size_t i = 0; i < running_.size(); ++i) {
        const auto logits = rows[rows.size() == 1 ? 0 : i];
        std::vector<float> row(logits.begin(), logits.end());
        log_softmax(row);
        logprobs.insert(logprobs.end(), row.begin(), row.end());
        auto seen = prompt_;
        seen.insert(seen.end(), running_[i].chosen.ids.begin(), running_[i].chosen.ids.end());
        penalize(row, seen, strategy_);
        for (const float score : row) scores.push_back(score + running_[i].score);
    }
    std::vector<Candidate> found;
    for (const auto at : top(scores, std::max<std::size_t>(2, 1 + stop_.size()) * running_.size())) {
        const auto token = static_cast<TokenId>(at % num_tokens);
        const bool ends = length_ + 1 >= room_ || is_stop(token);
        found.push_back({at / num_tokens, token, scores[at], logprobs[at], ends});
    }
    return found;
}

BeamChooser::Beam BeamChooser::continued(const Candidate& candidate) const {
    Beam beam{.chosen = running_[candidate.parent].chosen, .score = candidate.score, .is_finished = false};
    beam.chosen.ids.push_back(candidate.token);
    if (wants_logprobs_) beam.chosen.logprobs.push_back(candidate.logprob);
    beam.chosen.is_stopped = is_stop(candidate.token);
    return beam;
}

void BeamChooser::finish(const std::vector<Candidate>& candidates) {
    const auto divisor = static_cast<float>(std::pow(static_cast<double>(length_ + 1), strategy_.length_penalty));
    auto merged = finished_;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
        auto beam = continued(candidates[i]);
        // Beyond the number of beams, candidates only stand in for those that end.
        beam.is_finished = candidates[i].ends && i < running_.size();
        beam.score /= divisor;
        if (!is_improvable_) beam.score += kLoses;
        if (!beam.is_finished) beam.score += kLoses;
        merged.push_back(std::move(beam));
    }
    std::vector<float> scores(merged.size());
    std::transform(merged.begin(), merged.end(), scores.begin(), [](const Beam& beam) { return beam.score; });
    finished_.clear();
    for (const auto at : top(scores, running_.size())) finished_.push_back(merged[at]);
}

void BeamChooser::run_on(const std::vector<Candidate>& candidates) {
    std::vector<float> scores(candidates.size());
    std::transform(candidates.begin(), candidates.end(), scores.begin(),
                   [](const Candidate& candidate) { return candidate.score + (candidate.ends ? kLoses : 0.0F); });
    next_ = {};
    std::vector<Beam> running;
    for (const auto at : top(scores, running_.size())) {
        running.push_back(continued(candidates[at]));
        running.back().score = scores[at];
        next_.tokens.push_back(candidates[at].token);
        next_.parents.push_back(candidates[at].parent);
    }
    running_ = std::move(running);
}

/// Whether the best running beam would, at its length, win against the worst that has finished.
bool BeamChooser::can_improve() const {
    const auto divisor = static_cast<float>(std::pow(static_cast<double>(length_), strategy_.length_penalty));
    const auto best = running_.front().score / divisor;
    auto worst = finished_.front().score;
    for (const auto& beam : finished_) worst = std::min(worst, beam.score);
    return std::any_of(finished_.begin(), finished_.end(),
                       [&](const Beam& beam) { return best > (beam.is_finished ? worst : kLoses); });
}

bool BeamChooser::is_stop(TokenId token) const { return std::find(stop_.begin(), stop_.end(), token) != stop_.end(); }

}  // namespace lit_sft
