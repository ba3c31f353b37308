#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "strategy.h"
#include "tokens.h"

namespace lit_sft {

using Logits = std::span<const float>;  // of all tokens [V]

/// What the network reads next: of each row its token, and the row of the step before that it continues.
struct NextTokens {
    TokenIds tokens;
    std::vector<std::size_t> parents;
};

/// New tokens of an answer; the last is a stop token where `is_stopped`, otherwise it was cut at its length.
struct ChosenTokens {
    TokenIds ids;
    std::vector<float> logprobs;  ///< if wanted, of each token by the network itself: without temperature or penalties
    bool is_stopped = false;
};

/// Chooses the tokens of one answer from logits, a step at a time. Knows no network.
class Chooser {
   public:
    Chooser() = default;
    Chooser(const Chooser&) = delete;
    Chooser& operator=(const Chooser&) = delete;
    virtual ~Chooser() = default;

    /// Reads the logits of each row (of the prompt's only row at first) and says how they continue.
    ///
    /// @throws UserError where the logits hold NaN.
    virtual const NextTokens& choose(std::span<const Logits> rows) = 0;

    /// Whether the answer is complete; nothing may be chosen any more.
    [[nodiscard]] virtual bool is_done() const = 0;

    /// As far as it was chosen. Beam search knows its answer only when it is done.
    [[nodiscard]] virtual const ChosenTokens& answer() const = 0;
};

/// @param prompt ids that were read before.
/// @param stop tokens that end an answer.
/// @param room tokens of the answer at most, above 0.
/// @param wants_logprobs whether the answer has log-probabilities, which take a moment for each token.
std::unique_ptr<Chooser> make_chooser(const Strategy& strategy, const TokenIds& prompt, const TokenIds& stop,
                                      std::size_t room, bool wants_logprobs = false);

}  // namespace lit_sft
