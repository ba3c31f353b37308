"""Weighted preference optimization (Zhou et al. 2024, arXiv:2406.11827)."""

from __future__ import annotations

from torch import Tensor

from lit_sft.objectives._base import Answers
from lit_sft.objectives.dpo import DPO


class WPO(DPO):
    """DPO in which a pair counts by how likely the policy would have been to write its answers itself."""

    needs_certainty = True

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        """The loss of each pair, [P]."""
        assert chosen.certainty is not None
        assert rejected.certainty is not None
        weights = (chosen.certainty + rejected.certainty).exp().clamp_max(1)
        return weights * super().losses(chosen, rejected)
