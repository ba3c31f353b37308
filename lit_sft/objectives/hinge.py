"""The hinge loss of SLiC (Zhao et al. 2023, arXiv:2305.10425) on DPO's rewards."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lit_sft.objectives._base import Answers
from lit_sft.objectives._pairs import PairObjective


class Hinge(PairObjective):
    """Zero once the rewards are 1 apart."""

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        """The loss of each pair, [P]."""
        return F.relu(1 - self.beta * (chosen.ratios - rejected.ratios))
