"""Conservative DPO (Mitchell 2023, https://ericmitchell.ai/cdpo.pdf)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lit_sft.objectives._base import Answers
from lit_sft.objectives._smoothed import Smoothed


class CDPO(Smoothed):
    """DPO with soft labels: a pair is done when its rewards are log((1 - e) / e) apart, e being `label_smoothing`."""

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        """The loss of each pair, [P]."""
        margin = self.beta * (chosen.ratios - rejected.ratios)
        return -(1 - self.label_smoothing) * F.logsigmoid(margin) - self.label_smoothing * F.logsigmoid(-margin)
