"""The likelihood of the chosen answers alone."""

from __future__ import annotations

from torch import Tensor

from lit_sft.objectives._base import Answers
from lit_sft.objectives._pairs import Average, PairObjective


class SFTTerm(PairObjective):
    """Supervised fine-tuning on the chosen answers: what a comparison of objectives begins with.

    Args:
        weight: Of the negative log-likelihood.
        average: Over what its mean is taken; as `sft_average` of the other objectives.
    """

    needs_reference = False

    def __init__(self, weight: float = 1.0, average: Average = "answers") -> None:
        super().__init__(sft_weight=weight, sft_average=average)

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        """Nothing beside the term itself, [P]."""
        return chosen.logps.new_zeros(len(chosen.logps))
