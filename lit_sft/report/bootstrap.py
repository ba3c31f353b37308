"""Confidence intervals of a difference: the prompts are drawn again, before and after together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NUM_DRAWS = 2000
LEVEL = 0.95
MIN_PROMPTS = 5
CELLS = 4_000_000
"""Weights that live at once: the draws are made in parts, so that many prompts need no more memory."""


@dataclass(frozen=True)
class Difference:
    """A metric before and after over `num_prompts` prompts; `low` and `high` bound the difference, None below two."""

    before: float
    after: float
    low: float | None
    high: float | None
    num_prompts: int

    @property
    def change(self) -> float:
        """After less before."""
        return self.after - self.before

    @property
    def is_clear(self) -> bool:
        """Whether the interval does not hold zero; of very few prompts none says so, for it is too narrow."""
        if self.num_prompts < MIN_PROMPTS or self.low is None or self.high is None:
            return False
        return self.low > 0 or self.high < 0


def difference(before: Array, after: Array, value: Callable[[Array], Array], seed: int) -> Difference:
    """A metric of both, and the percentile interval of its difference (Efron 1979), paired over prompts.

    Args:
        before: What the metric counts on each prompt [N, S].
        after: The same after tuning, prompt by prompt.
        value: Sums [..., S] -> metric [...].
        seed: Of the draws.
    """
    num_prompts = len(before)
    found = value(before.sum(0)), value(after.sum(0))
    low = high = None
    if num_prompts > 1:
        draws = _draws(before, after, value, np.random.default_rng(seed))
        finite = draws[np.isfinite(draws)]
        if len(finite):
            low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Difference(float(found[0]), float(found[1]), low, high, num_prompts)


def _draws(before: Array, after: Array, value: Callable[[Array], Array], generator: np.random.Generator) -> Array:
    num_prompts = len(before)
    size = max(1, CELLS // num_prompts)
    parts = []
    for start in range(0, NUM_DRAWS, size):
        shape = min(size, NUM_DRAWS - start)
        weights = generator.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=shape).astype(float)
        parts.append(value(weights @ after) - value(weights @ before))
    return np.concatenate(parts)
