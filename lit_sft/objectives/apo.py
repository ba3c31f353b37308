"""Anchored preference optimization (D'Oosterlinck et al. 2024, arXiv:2408.06266)."""

from __future__ import annotations

from torch import Tensor

from lit_sft.objectives._base import Answers
from lit_sft.objectives._pairs import PairObjective


class APOZero(PairObjective):
    """Chosen answers become more likely and rejected ones less: where the policy is worse than the chosen answers."""

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        """The loss of each pair, [P]."""
        return 1 - self.rewards(chosen).sigmoid() + self.rewards(rejected).sigmoid()


class APODown(PairObjective):
    """Both become less likely, the rejected answer the more: where the policy is better than the chosen answers."""

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        """The loss of each pair, [P]."""
        better, worse = self.rewards(chosen), self.rewards(rejected)
        return better.sigmoid() + 1 - (better - worse).sigmoid()
