"""How much better an answer is than the others to its prompt.

Rewards that are not finite numbers are unscored: left out of all means, with advantage 0. Rewards [N] stand group after
group: the answers to one prompt are `group` rows in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lit_sft.losses.moments import mean_and_variance, moments

Scale = Literal["group", "batch", "none"]

EPSILON = 1e-4
"""Added to a standard deviation that divides."""


def weighted_sum(rewards: Tensor, weights: Sequence[float]) -> Tensor:
    """One reward [N] of several [N, F]: unscored ones are left out; NaN where all are."""
    rewards = _scored(rewards)
    total = (rewards * rewards.new_tensor(weights)).nansum(1)
    return total.masked_fill(rewards.isnan().all(1), torch.nan)


def penalized(rewards: Tensor, kl: Tensor, beta: float, clip: tuple[float, float] | None = None) -> Tensor:
    """Rewards [N], clipped to a range, less beta times the KL of their answers [N]: `k1` summed over the tokens."""
    return (rewards if clip is None else rewards.clamp(*clip)) - beta * kl


def spreads(rewards: Tensor, group: int) -> Tensor:
    """Unbiased standard deviation of each group [N / group], 0 where fewer than two are scored.

    A group without spread teaches nothing.
    """
    return _statistics(rewards, group)[1].squeeze(1)


def group_advantages(rewards: Tensor, group: int, scale: Scale = "group", sums: Tensor | None = None) -> Tensor:
    """GRPO (arXiv:2402.03300): rewards [N] less the mean of their group, over a standard deviation.

    Dividing by that of the group bends the gradient: prompts whose answers are nearly alike weigh as much as others,
    and beta in the reward is divided too. `none` is Dr. GRPO's (arXiv:2503.20783).

    Args:
        rewards: [N].
        group: Answers to a prompt.
        scale: Whose standard deviation divides.
        sums: `moments` of all scored rewards on all devices, for `batch`; those of these rewards if not given.
    """
    rewards = _scored(rewards)
    mean, spread = _statistics(rewards, group)
    centered = (rewards.view(-1, group) - mean).flatten()
    if scale == "group":
        centered = centered / (spread + EPSILON).expand(-1, group).flatten()
    elif scale == "batch":
        centered = centered / (_batch_statistics(rewards, sums)[1] + EPSILON)
    return _zero_where_unscored(centered)


def separate_group_advantages(
    rewards: Tensor, group: int, weights: Sequence[float], sums: Tensor | None = None
) -> Tensor:
    """GDPO (arXiv:2601.05242): each of several rewards [N, F] is normalized by group, then summed, then by batch.

    Args:
        rewards: [N, F].
        group: Answers to a prompt.
        weights: Of the F rewards.
        sums: `moments` of all scored sums on all devices; those of these rewards if not given.
    """
    rewards = _scored(rewards)
    each = torch.stack([group_advantages(of_one, group) for of_one in rewards.unbind(1)], dim=1)
    total = weighted_sum(each.masked_fill(rewards.isnan(), torch.nan), weights)
    return batch_normalized(total, sums)


def leave_one_out_advantages(rewards: Tensor, group: int) -> Tensor:
    """RLOO (arXiv:2402.14740): rewards [N] less the mean of the other answers to the prompt; 0 where there are none."""
    rows = _scored(rewards).view(-1, group)
    count = (~rows.isnan()).sum(1, keepdim=True)
    others = (rows.nansum(1, keepdim=True) - rows) / (count - 1).clamp_min(1)
    return _zero_where_unscored(torch.where(count > 1, rows - others, 0.0).flatten())


def batch_normalized(values: Tensor, sums: Tensor | None = None) -> Tensor:
    """Values [N] less the mean of the batch, over its standard deviation; 0 where NaN.

    Args:
        values: [N].
        sums: `moments` of what is not NaN on all devices; those of these values if not given.
    """
    mean, spread = _batch_statistics(values, sums)
    return _zero_where_unscored((values - mean) / (spread + EPSILON))


def _scored(rewards: Tensor) -> Tensor:
    """NaN for all that is not finite."""
    return rewards.masked_fill(~rewards.isfinite(), torch.nan)


def _zero_where_unscored(advantages: Tensor) -> Tensor:
    return advantages.masked_fill(advantages.isnan(), 0.0)


def _statistics(rewards: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of each group, [N / group, 1]."""
    rows = rewards.view(-1, group)
    count = (~rows.isnan()).sum(1, keepdim=True)
    mean = rows.nansum(1, keepdim=True) / count.clamp_min(1)
    squares = (rows - mean).square().nansum(1, keepdim=True)
    return mean, (squares / (count - 1).clamp_min(1)).sqrt()


def _batch_statistics(values: Tensor, sums: Tensor | None) -> tuple[Tensor, Tensor]:
    mean, variance = mean_and_variance(moments(values, ~values.isnan()) if sums is None else sums)
    return mean.to(values.dtype), variance.sqrt().to(values.dtype)
