"""Learning rate over the run: a factor of the optimizer's rate, as a function of the share of the run that is done.

How many steps an epoch has need not be known for that.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from lit_sft.errors import ConfigError


class Schedule(ABC):
    """A linear warm-up, then a curve.

    Args:
        warmup_fraction: Share of the run in which the rate rises from zero.

    Raises:
        ConfigError: If the warm-up would not end within the run.
    """

    def __init__(self, warmup_fraction: float = 0.03) -> None:
        if not 0 <= warmup_fraction < 1:
            raise ConfigError(f"schedule warmup_fraction is {warmup_fraction}; it must be at least 0 and below 1")
        self.warmup_fraction = warmup_fraction

    def factor(self, before: float, after: float) -> float:
        """Factor of the learning rate in a step.

        The warm-up counts the step itself and the curve only those before it, so neither the first step nor the last
        has a rate of zero.

        Args:
            before: Share of the run that was done before the step.
            after: Share that is done with it.
        """
        if after < self.warmup_fraction:
            return after / self.warmup_fraction
        return self.curve(max(before - self.warmup_fraction, 0.0) / (1 - self.warmup_fraction))

    @abstractmethod
    def curve(self, progress: float) -> float:
        """Factor after the warm-up; `progress` runs from 0 to 1."""


class Constant(Schedule):
    """The full rate to the end."""

    def curve(self, progress: float) -> float:
        """One."""
        return 1.0


class Linear(Schedule):
    """Down to zero in a straight line."""

    def curve(self, progress: float) -> float:
        """Falls evenly."""
        return 1.0 - progress


class Cosine(Schedule):
    """Down to zero along half a cosine (Loshchilov and Hutter 2016, arXiv:1608.03983)."""

    def curve(self, progress: float) -> float:
        """Falls slowly, fast, slowly."""
        return 0.5 * (1.0 + math.cos(math.pi * progress))
