"""DPO under other divergences than the reverse KL (Wang et al. 2023, arXiv:2309.16240)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from lit_sft.objectives._base import Answers
from lit_sft.objectives._pairs import PairObjective

Divergence = Literal["forward_kl", "jensen_shannon"]

MAX_EXPONENT = 40.0
"""Beyond it a pair is decided. An answer that the policy has given up is soon e^100 times less likely: that is infinite
in float32, and its gradient not a number."""


class FDPO(PairObjective):
    """-log sigmoid of beta times the difference of what the divergence makes of the log-ratios.

    Args:
        beta: How closely the policy is held to the reference.
        divergence: By which it is held there.
        kwargs: What every objective on pairs takes.
    """

    def __init__(self, beta: float = 0.1, *, divergence: Divergence = "forward_kl", **kwargs: Any) -> None:
        super().__init__(beta, **kwargs)
        self.divergence = divergence

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        """The loss of each pair, [P]."""
        return -F.logsigmoid(self.beta * (self._scores(chosen.ratios) - self._scores(rejected.ratios)))

    def _scores(self, ratios: Tensor) -> Tensor:
        """The divergence's derivative at the ratio, less a constant, [P]."""
        return -(-ratios).clamp_max(MAX_EXPONENT).exp() if self.divergence == "forward_kl" else F.logsigmoid(ratios)
