"""Discovered preference optimization (Lu et al. 2024, arXiv:2406.08414)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from lit_sft.objectives._base import Answers
from lit_sft.objectives._pairs import PairObjective


class DiscoPOP(PairObjective):
    """Blends the logistic with the exponential loss, the latter the more the further apart the rewards are.

    Args:
        beta: How closely the policy is held to the reference.
        tau: How soft the change from one to the other is.
        kwargs: What every objective on pairs takes.
    """

    def __init__(self, beta: float = 0.1, *, tau: float = 0.05, **kwargs: Any) -> None:
        super().__init__(beta, **kwargs)
        self.tau = tau

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        """The loss of each pair, [P]."""
        margin = self.beta * (chosen.ratios - rejected.ratios)
        share = (margin / self.tau).sigmoid()
        # One exponential: of rewards far the wrong way round the one is infinite and the other zero.
        return -F.logsigmoid(margin) * (1 - share) + (F.logsigmoid(margin / self.tau) - margin).exp()
