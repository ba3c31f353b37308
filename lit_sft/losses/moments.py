"""Mean and spread of numbers that lie on several devices, some of which do not count."""

from __future__ import annotations

import torch
from torch import Tensor


def moments(values: Tensor, mask: Tensor) -> Tensor:
    """Number, sum and sum of squares of what the mask keeps, float64 [3]: add up those of several devices."""
    kept = torch.where(mask, values, 0.0).double()
    return torch.stack([mask.sum().double(), kept.sum(), kept.square().sum()])


def mean_and_variance(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Two scalars from sums [3]; the variance is the unbiased one, and 0 of a single number."""
    count, total, squares = sums.unbind()
    mean = total / count.clamp_min(1)
    return mean, ((squares - total * mean) / (count - 1).clamp_min(1)).clamp_min(0)


def whitened(values: Tensor, mask: Tensor, sums: Tensor | None = None) -> Tensor:
    """Mean 0 and variance 1 over what the mask keeps; 0 elsewhere.

    Args:
        values: Of any shape.
        mask: Bool, of the same shape.
        sums: `moments` of all devices; those of these values if not given.
    """
    mean, variance = mean_and_variance(moments(values, mask) if sums is None else sums)
    scaled = (values - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, scaled, 0.0).to(values.dtype)
