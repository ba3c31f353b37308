"""Odds ratio preference optimization (Hong et al. 2024, arXiv:2403.07691)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_sft.objectives._base import Answers, ItemLosses
from lit_sft.objectives._pairs import PairObjective


class ORPO(PairObjective):
    """Likelihood of the chosen answer, and beta times -log sigmoid of the log of the ratio of the odds of both.

    The odds are those of the mean token. Needs no reference.

    Args:
        beta: Weight of the odds (lambda in the paper).
        sft_weight: Weight of the likelihood.
        likelihood_of: What is made likely: the chosen `answer`, or with it its `prompt`, as in the authors' code.
        kwargs: What every objective on pairs takes.
    """

    needs_reference = False
    shows_means = True

    def __init__(
        self,
        beta: float = 0.1,
        *,
        sft_weight: float = 1.0,
        likelihood_of: Literal["answer", "prompt"] = "answer",
        **kwargs: Any,
    ) -> None:
        super().__init__(beta, sft_weight=sft_weight, **kwargs)
        self.needs_prompts = likelihood_of == "prompt"
        self.measures = (*self.measures, "log_odds_ratio", "log_odds_chosen")

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        """The loss of each pair, [P]."""
        return -self.beta * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))

    def __call__(self, answers: Answers, items: Tensor) -> ItemLosses:
        """The loss of each pair; see the base class."""
        found = super().__call__(answers, items)
        with torch.no_grad():
            odds = _log_odds(answers[items[:, 0]]) - _log_odds(answers[items[:, 1]])
        columns = torch.cat([found.measures, F.logsigmoid(odds)[:, None], odds[:, None]], dim=1)
        return ItemLosses(found.losses, found.counts, columns, found.sequences)

    def likelihood_of(self, chosen: Answers) -> tuple[Tensor, Tensor]:
        """Log-probabilities and tokens of what is made likely, [P] each."""
        if not self.needs_prompts:
            return super().likelihood_of(chosen)
        assert chosen.whole_logps is not None
        assert chosen.whole_lengths is not None
        return chosen.whole_logps, chosen.whole_lengths


def _log_odds(answers: Answers) -> Tensor:
    """log(p / (1 - p)) of the mean token, [P]."""
    # Of an answer that the policy is certain of, one token for example, the odds would be infinite and no gradient.
    means = answers.means.clamp_max(-torch.finfo(answers.logps.dtype).eps)
    return means - torch.log(-torch.expm1(means))
