#pragma once

#include "chooser.h"

namespace lit_sft {

/// Beam search as transformers does it (`early_stopping=False`): several answers followed side by side.
class BeamChooser final : public Chooser {
   public:
    BeamChooser(const Strategy& strategy, const TokenIds& prompt, const TokenIds& stop, std::size_t room,
                bool wants_logprobs);

    const NextTokens& choose(std::span<const Logits> rows) override;
    [[nodiscard]] bool is_done() const override { return is_done_; }
    [[nodiscard]] const ChosenTokens& answer() const override { return answer_; }

   private:
    struct Beam {
        ChosenTokens chosen;
        float score = 0;
        bool is_finished = false;
    };
    struct Candidate {
        std::size_t parent;
        TokenId token;
        float score;
        float logprob;
        bool ends;  // a stop token, or the last that there is room for
    };

    [[nodiscard]] std::vector<Candidate> best_continuations(std::span<const Logits> rows) const;
    [[nodiscard]] Beam continued(const Candidate& candidate) const;
    void finish(const std::vector<Candidate>& candidates);
    void run_on(const std::vector<Candidate>& candidates);
    [[nodiscard]] bool can_improve() const;
    [[nodiscard]] bool is_stop(TokenId token) const;

    Strategy strategy_;
    TokenIds prompt_;
    TokenIds stop_;
    std::size_t room_;
    bool wants_logprobs_;
    std::size_t length_ = 0;  // new tokens of each running beam
    std::vector<Beam> running_;
    std::vector<Beam> finished_;  // the best first
    bool is_improvable_ = true;
    bool is_done_ = false;
    NextTokens next_;
    ChosenTokens answer_;
};

}  // namespace lit_sft
