"""Robust DPO (Chowdhury et al. 2024, arXiv:2403.00409)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lit_sft.objectives._base import Answers
from lit_sft.objectives._smoothed import Smoothed


class Robust(Smoothed):
    """In expectation the loss of DPO on pairs that are all right, where `label_smoothing` of them are not.

    It has no lower bound: watch the rewards.
    """

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        """The loss of each pair, [P]."""
        share = self.label_smoothing
        margin = self.beta * (chosen.ratios - rejected.ratios)
        return (share * F.logsigmoid(-margin) - (1 - share) * F.logsigmoid(margin)) / (1 - 2 * share)
