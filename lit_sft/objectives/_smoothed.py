"""What objectives share that expect some pairs to be the wrong way round."""

from __future__ import annotations

from typing import Any

from lit_sft.errors import ConfigError
from lit_sft.objectives._pairs import PairObjective


class Smoothed(PairObjective):
    """An objective on pairs of which some are the wrong way round.

    Args:
        beta: How closely the policy is held to the reference.
        label_smoothing: Share of the pairs that are the wrong way round.
        kwargs: What every objective on pairs takes.
    """

    def __init__(self, beta: float = 0.1, *, label_smoothing: float = 0.1, **kwargs: Any) -> None:
        super().__init__(beta, **kwargs)
        if not 0 <= label_smoothing < 0.5:
            raise ConfigError(f"label_smoothing is {label_smoothing}; it must be at least 0 and below 0.5")
        self.label_smoothing = label_smoothing
