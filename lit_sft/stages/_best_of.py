"""Best of n: of several sampled answers to a prompt the one that a reward model likes best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_sft.conversation import Prompt
from lit_sft.files import states_of
from lit_sft.generation.generate import Answer
from lit_sft.rewards._base import Answered

if TYPE_CHECKING:
    import torch

    from lit_sft.rewards.trained import Trained


@dataclass(frozen=True)
class Scored:
    """An answer with its score; None where the reward model cannot read it."""

    answer: Answer
    score: float | None


@dataclass(frozen=True)
class BestOf:
    """What chooses among answers.

    Args:
        num_answers: To each prompt.
        reward: The reward model; it stands in memory beside the policy.
    """

    num_answers: int
    reward: Trained

    def settings(self) -> dict[str, Any]:
        """All that the choice depends on beside the answers."""
        weights = [*Path(self.reward.folder).iterdir(), *self.reward.checkpoint.weight_files]
        return {"best_of": self.num_answers, "reward": states_of(sorted({*weights}))}

    def choose(
        self, prompts: Sequence[Prompt], draws: Sequence[Sequence[dict[str, Answer]]], device: torch.device
    ) -> list[dict[str, Scored]]:
        """Of each prompt and strategy the answer with the highest score, the first of those.

        Args:
            prompts: What was asked [P].
            draws: Each time all prompts were answered [N][P], by strategy.
            device: Where the policy is.
        """
        self.reward.to(device)
        strategies = list(draws[0][0]) if prompts else []
        drawn = [[answers[place][name] for answers in draws] for place in range(len(prompts)) for name in strategies]
        asked = [prompt for prompt in prompts for _ in strategies]
        scores = iter(
            self.reward.score(
                [
                    Answered(p.messages, a.text, a.finish_reason == "stop", a.num_tokens, p.reference)
                    for p, answers in zip(asked, drawn, strict=True)
                    for a in answers
                ]
            )
        )
        best = [
            max((Scored(answer, next(scores)) for answer in answers), key=lambda found: _rank(found.score))
            for answers in drawn
        ]
        parts = [best[start : start + len(strategies)] for start in range(0, len(best), max(1, len(strategies)))]
        return [dict(zip(strategies, part, strict=True)) for part in parts]


def _rank(score: float | None) -> float:
    return -float("inf") if score is None else score
