"""Rewards in units of their spread so far, so that the weight of the KL means the same for every reward model."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_sft.errors import ConfigError
from lit_sft.losses.moments import mean_and_variance, moments

RewardNorm = Literal["std", "mean_std"]


class RewardScaling:
    """Running normalization, then a range (Zheng et al. 2023, arXiv:2307.04964, section 4.3).

    Args:
        norm: Divide by the standard deviation of all rewards so far; with `mean_std` take their mean off before.
        clip: Range of the result.
    """

    def __init__(self, norm: RewardNorm | None = None, clip: tuple[float, float] | None = None) -> None:
        if clip and clip[0] >= clip[1]:
            raise ConfigError(f"reward_clip is {list(clip)}; give the lower bound first")
        self.norm = norm
        self.clip = clip
        self.sums = torch.zeros(3, dtype=torch.float64)
        """`moments` of all rewards so far: they belong into a checkpoint."""

    def __call__(self, rewards: Tensor) -> Tensor:
        """Take rewards [N] into account, and scale them; NaN, which is unscored, stays NaN.

        Args:
            rewards: Those of all devices, so that each comes to the same.
        """
        self.sums = self.sums + moments(rewards, ~rewards.isnan())
        scaled = rewards
        if self.norm:
            mean, variance = mean_and_variance(self.sums)
            # A first reward, or the same one always, has no spread: it stays as it is.
            std = variance.sqrt().float() if variance > 0 else torch.ones(())
            scaled = (rewards - mean.float() if self.norm == "mean_std" else rewards) / std
        return scaled.clamp(*self.clip) if self.clip else scaled
