"""What PPO needs of a value function: advantages of tokens, and the loss of the values (arXiv:1506.02438, 1707.06347).

All grids are [R, T], answers from the left; what stands beyond an answer is not read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Advantages(NamedTuple):
    """Of each token [R, T], 0 beyond the answer; `returns` are what the values learn, before any whitening."""

    advantages: Tensor
    returns: Tensor


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, coefficient: float) -> Tensor:
    """Minus the KL at each token, and the score of the answer at its last one, [R, T].

    Args:
        scores: [R].
        kl: Of each token, [R, T].
        mask: Bool [R, T].
        coefficient: Weight of the KL.
    """
    is_last = mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))
    return torch.where(mask, -coefficient * kl, 0.0) + torch.where(is_last, scores[:, None], 0.0)


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> Advantages:
    """A_t = d_t + gamma lam A_(t+1) with d_t = r_t + gamma V_(t+1) - V_t. Nothing follows an answer: its last V is 0.

    Args:
        rewards: [R, T].
        values: [R, T], each read where its token is predicted.
        mask: Bool [R, T].
        gamma: Discount of later rewards.
        lam: Between the error of one step (0) and that of the whole answer (1), for which the values may be wrong.
    """
    rewards, values = (torch.where(mask, grid, 0.0) for grid in (rewards, values))
    advantages = torch.zeros_like(values)
    following = following_value = values.new_zeros(len(values))
    for place in reversed(range(values.shape[1])):
        error = rewards[:, place] + gamma * following_value - values[:, place]
        following = error + gamma * lam * following
        advantages[:, place] = following
        following_value = values[:, place]
    return Advantages(advantages, advantages + values)


def value_losses(values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, clip: float | None = 0.2) -> Tensor:
    """Half the squared error, summed over the tokens of each answer, [R]; divide by the tokens of the step.

    Args:
        values: [R, T], to back-propagate.
        old: Those of the rollout.
        returns: What they should have been.
        mask: Bool [R, T].
        clip: How far from the old ones a value may be and still gain; as far as it likes if not given.
    """
    errors = (values - returns).square()
    if clip is not None:
        errors = torch.maximum(errors, _held_errors(values, old, returns, clip))
    return 0.5 * torch.where(mask, errors, 0.0).sum(1)


def clipped_values(values: Tensor, old: Tensor, returns: Tensor, clip: float | None = 0.2) -> Tensor:
    """Where that loss is the one of a value held near the old one, bool [R, T]."""
    if clip is None:
        return torch.zeros_like(values, dtype=torch.bool)
    return _held_errors(values, old, returns, clip) > (values - returns).square()


def _held_errors(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    return (old + (values - old).clamp(-clip, clip) - returns).square()


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Share of the returns' variance, all [R, T], that the values explain: 1 for perfect ones, 0 for their mean."""
    kept = returns[mask]
    return 1 - (kept - values[mask]).var() / kept.var().clamp_min(1e-8)
