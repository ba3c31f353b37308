#pragma once

#include <optional>

#include "chooser.h"
#include "random.h"

namespace lit_sft {

/// Greedy or drawn: one row, one token at a time.
class SingleChooser final : public Chooser {
   public:
    SingleChooser(const Strategy& strategy, const TokenIds& prompt, const TokenIds& stop, std::size_t room,
                  bool wants_logprobs);

    const NextTokens& choose(std::span<const Logits> rows) override;
    [[nodiscard]] bool is_done() const override { return answer_.is_stopped || answer_.ids.size() >= room_; }
    [[nodiscard]] const ChosenTokens& answer() const override { return answer_; }

   private:
    Strategy strategy_;
    TokenIds seen_;  // prompt and answer
    TokenIds stop_;
    std::size_t room_;
    bool wants_logprobs_;
    std::optional<Random> random_;  // of sampling
    NextTokens next_{.tokens = {0}, .parents = {0}};
    ChosenTokens answer_;
};

}  // namespace lit_sft
