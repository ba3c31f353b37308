"""What is summed of a micro-batch of a value function, and the metrics that become of it in a step."""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_sft.losses.segments import sums_by_group
from lit_sft.stages._policy_sums import MEASURES, PolicySums

VALUE_MEASURES = (
    "value_losses",
    "num_values",
    "clipped_values",
    "values",
    "returns",
    "squared_returns",
    "errors",
    "squared_errors",
)
"""Sums beside those of the policy."""


class ValueSums(NamedTuple):
    """Sums over a micro-batch; see `Totals`. The loss counts nothing: it is a mean over the tokens of the policy's."""

    loss: Tensor
    by_group: Tensor

    @classmethod
    def of(
        cls, losses: Tensor, values: Tensor, returns: Tensor, is_clipped: Tensor, mask: Tensor, groups: Tensor, num: int
    ) -> Self:
        """The loss to back-propagate, and by corpus all sums of a step.

        Args:
            losses: Of each answer [R].
            values: Of each token [R, T].
            returns: What they should be.
            is_clipped: Where a value gains no more.
            mask: Bool [R, T]: the tokens that count.
            groups: The corpus of each answer [R].
            num: Of corpora, G.
        """
        with torch.no_grad():
            values, returns = (torch.where(mask, grid, 0.0).double() for grid in (values, returns))
            errors = returns - values
            grids = [mask, is_clipped & mask, values, returns, returns.square(), errors, errors.square()]
            measured = [losses.double(), *(grid.sum(1).double() for grid in grids)]
            nothing = torch.zeros_like(measured[0])
            table = torch.stack([measured[0], *[nothing] * (len(MEASURES) + 2), *measured], dim=1)
            by_group = sums_by_group(table, groups, num)
        return cls(losses.sum(), by_group)


def beside_values(sums: PolicySums) -> PolicySums:
    """Those of the policy, with its loss by itself, and nothing of the values."""
    by_group = torch.cat([sums.by_group, sums.by_group[:, :1]], dim=1)
    return PolicySums(sums.loss, F.pad(by_group, (0, len(VALUE_MEASURES))))


def value_means(*sums: float) -> dict[str, float]:
    """Metrics of a step by name, from its sums of `VALUE_MEASURES`."""
    total = dict(zip(VALUE_MEASURES, sums, strict=True))
    if not (n := total["num_values"]):
        return {}
    of_errors, of_returns = (total[f"squared_{name}"] / n - (total[name] / n) ** 2 for name in ("errors", "returns"))
    return {
        "loss/value_avg": total["value_losses"] / n,
        "value/clipfrac_avg": total["clipped_values"] / n,
        "value/mean": total["values"] / n,
        "value/mean_return": total["returns"] / n,
        "value/explained_variance": 1 - of_errors / max(of_returns, 1e-8),
    }
