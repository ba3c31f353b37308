"""Binary classifier optimization (Jung et al. 2024, arXiv:2404.04656)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from lit_sft.objectives._base import Answers
from lit_sft.objectives._pairs import PairObjective


class BCO(PairObjective):
    """The chosen answer's reward is above a threshold and the rejected one's below it.

    The paper moves the threshold along with the mean reward of the batches before. Here it stays, so that the loss does
    not depend on them.

    Args:
        beta: How closely the policy is held to the reference.
        threshold: In units of the rewards.
        kwargs: What every objective on pairs takes.
    """

    def __init__(self, beta: float = 0.1, *, threshold: float = 0.0, **kwargs: Any) -> None:
        super().__init__(beta, **kwargs)
        self.threshold = threshold

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        """The loss of each pair, [P]."""
        better, worse = self.rewards(chosen), self.rewards(rejected)
        return -F.logsigmoid(better - self.threshold) - F.logsigmoid(self.threshold - worse)
