"""Efficient exact optimization (Ji et al. 2024, arXiv:2402.00856)."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from lit_sft.errors import ConfigError
from lit_sft.objectives._base import Answers
from lit_sft.objectives._smoothed import Smoothed


class EXO(Smoothed):
    """The divergence of the policy's choice within a pair from the label: the reverse of DPO's, so it seeks a mode.

    Args:
        beta: How closely the policy is held to the reference.
        label_smoothing: Share of the pairs that are the wrong way round; above 0, or the divergence would be infinite.
        kwargs: What every objective on pairs takes.
    """

    def __init__(self, beta: float = 0.1, *, label_smoothing: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(beta, label_smoothing=label_smoothing, **kwargs)
        if not label_smoothing:
            raise ConfigError("label_smoothing is 0; EXO needs it above 0")

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        """The loss of each pair, [P]."""
        margin = self.beta * (chosen.ratios - rejected.ratios)
        of_chosen = margin.sigmoid() * (F.logsigmoid(margin) - math.log1p(-self.label_smoothing))
        return of_chosen + (-margin).sigmoid() * (F.logsigmoid(-margin) - math.log(self.label_smoothing))
