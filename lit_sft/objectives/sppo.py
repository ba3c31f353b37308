"""Self-play preference optimization (Wu et al. 2024, arXiv:2405.00675), with the labels for the win rates."""

from __future__ import annotations

from torch import Tensor

from lit_sft.objectives._base import Answers
from lit_sft.objectives._pairs import PairObjective


class SPPO(PairObjective):
    """Squared distance of the log-ratios from 1 / (2 beta) for the chosen answer, from the negative for the other."""

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        """The loss of each pair, [P]."""
        target = 0.5 / self.beta
        return (chosen.ratios - target).square() + (rejected.ratios + target).square()
