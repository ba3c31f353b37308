"""Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from lit_sft.objectives._base import Answers
from lit_sft.objectives._pairs import PairObjective


class DPO(PairObjective):
    """-log sigmoid of the difference of the rewards; ln 2 while the policy is the reference.

    Args:
        beta: How closely the policy is held to the reference; about 2 with `normalizes_length`.
        normalizes_length: Whether an answer counts by the mean over its tokens and not by their sum.
        kwargs: What every objective on pairs takes.
    """

    def __init__(self, beta: float = 0.1, *, normalizes_length: bool = False, **kwargs: Any) -> None:
        super().__init__(beta, **kwargs)
        self.normalizes_length = normalizes_length

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        """The loss of each pair, [P]."""
        if self.normalizes_length:
            return -F.logsigmoid(self.beta * (chosen.mean_ratios - rejected.mean_ratios))
        return -F.logsigmoid(self.beta * (chosen.ratios - rejected.ratios))
