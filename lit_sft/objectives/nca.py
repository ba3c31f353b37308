"""Noise contrastive alignment (Chen et al. 2024, arXiv:2402.05369)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lit_sft.objectives._base import Answers
from lit_sft.objectives._pairs import PairObjective


class NCA(PairObjective):
    """Raises the reward of the chosen answer and holds both near 0, so that its log-probability does not fall."""

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        """The loss of each pair, [P]."""
        better, worse = self.rewards(chosen), self.rewards(rejected)
        return -F.logsigmoid(better) - 0.5 * F.logsigmoid(-better) - 0.5 * F.logsigmoid(-worse)
