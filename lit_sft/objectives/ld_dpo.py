"""Length-desensitized DPO (Liu et al. 2024, arXiv:2409.06411)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_sft.errors import ConfigError
from lit_sft.objectives.dpo import DPO


class LDDPO(DPO):
    """DPO in which the tokens of an answer beyond the length of the other one count less.

    Args:
        beta: How closely the policy is held to the reference.
        alpha: What they count, from 0 to 1.
        kwargs: What every objective on pairs takes.
    """

    def __init__(self, beta: float = 0.1, *, alpha: float = 0.5, **kwargs: Any) -> None:
        super().__init__(beta, **kwargs)
        if not 0 <= alpha <= 1:
            raise ConfigError(f"alpha is {alpha}; it must be from 0 to 1")
        self.alpha = alpha

    def summed(self, logps: Tensor, lengths: Tensor, items: Tensor) -> Tensor:
        """The log-probability of an answer, [S]: an answer in several pairs by the shortest of the others."""
        shorter = lengths[items].amin(1, keepdim=True).expand_as(items)
        common = lengths.scatter_reduce(0, items.flatten(), shorter.flatten(), "amin")
        is_common = torch.arange(logps.shape[1], device=logps.device) < common[:, None]
        return torch.where(is_common, logps, self.alpha * logps).sum(1)
