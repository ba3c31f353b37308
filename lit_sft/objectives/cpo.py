"""Contrastive preference optimization (Xu et al. 2024, arXiv:2401.08417)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from lit_sft.errors import ConfigError
from lit_sft.objectives._base import Answers
from lit_sft.objectives._smoothed import Smoothed


class CPO(Smoothed):
    """DPO without a reference, held in place by the likelihood of the chosen answer.

    Args:
        beta: Scales the difference of the log-probabilities.
        loss: What of the difference is minimized: as in DPO, in Hinge, or in IPO, which takes means over tokens.
        label_smoothing: Share of the pairs that are the wrong way round.
        sft_weight: Weight of the likelihood.
        kwargs: What every objective on pairs takes.
    """

    needs_reference = False

    def __init__(
        self,
        beta: float = 0.1,
        *,
        loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid",
        label_smoothing: float = 0.0,
        sft_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(beta, label_smoothing=label_smoothing, sft_weight=sft_weight, **kwargs)
        if label_smoothing and loss != "sigmoid":
            raise ConfigError(f"label_smoothing has no meaning with loss {loss}; leave it out, or use sigmoid")
        self.loss = loss
        self.shows_means = loss == "ipo"

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        """The loss of each pair, [P]."""
        if self.loss == "ipo":
            return (chosen.means - rejected.means - 1 / (2 * self.beta)).square()
        margin = self.beta * (chosen.logps - rejected.logps)
        if self.loss == "hinge":
            return F.relu(1 - margin)
        return -(1 - self.label_smoothing) * F.logsigmoid(margin) - self.label_smoothing * F.logsigmoid(-margin)
