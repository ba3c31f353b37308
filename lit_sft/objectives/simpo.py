"""Simple preference optimization (Meng et al. 2024, arXiv:2405.14734)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_sft.objectives._base import Answers
from lit_sft.objectives._pairs import PairObjective


class SimPO(PairObjective):
    """-log sigmoid of the difference of rewards less a margin; a reward is the mean log-probability of a token.

    Needs no reference: a low learning rate holds the policy in place.

    Args:
        beta: Scales the rewards; 2 to 2.5.
        gamma: The margin; 0.5 to 1.5.
        alpha: Bends the mean log-probability a into (1 - exp(-alpha a)) / alpha (AlphaPO: arXiv:2501.03884).
        kwargs: What every objective on pairs takes.
    """

    needs_reference = False
    shows_means = True

    def __init__(self, beta: float = 2.0, *, gamma: float = 1.0, alpha: float = 0.0, **kwargs: Any) -> None:
        super().__init__(beta, **kwargs)
        self.gamma = gamma
        self.alpha = alpha

    def rewards(self, answers: Answers) -> Tensor:
        """By how much the policy prefers each answer, [P]."""
        means = answers.means
        return self.beta * (-torch.expm1(-self.alpha * means) / self.alpha if self.alpha else means)

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        """The loss of each pair, [P]."""
        return -F.logsigmoid(self.rewards(chosen) - self.rewards(rejected) - self.gamma)
