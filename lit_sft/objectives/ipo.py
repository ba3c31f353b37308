"""Identity preference optimization (Azar et al. 2023, arXiv:2310.12036)."""

from __future__ import annotations

from torch import Tensor

from lit_sft.objectives._base import Answers
from lit_sft.objectives._pairs import PairObjective


class IPO(PairObjective):
    """The squared distance of the log-ratios' difference from 1 / (2 beta), which is what it converges to.

    Of the mean over tokens, as the authors' corrected code has it: no sum over a long answer comes near that distance.
    """

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        """The loss of each pair, [P]."""
        return (chosen.mean_ratios - rejected.mean_ratios - 1 / (2 * self.beta)).square()
