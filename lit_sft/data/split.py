"""Which records train and which are held out: a function of what is said and of the seed, not of its place."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def held_out(fingerprints: NDArray[np.uint64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which conversations [N] are held out.

    The distinct ones that a hash puts first; records that say the same go together, so that none of them is trained on.

    Args:
        fingerprints: One for each conversation [N].
        fraction: Share of the distinct conversations to hold out; at least one if it is above zero and there are two.
        seed: Another one holds out others.
    """
    distinct = np.unique(_mixed(fingerprints, seed))
    num_held_out = round(fraction * len(distinct))
    if fraction > 0 and len(distinct) > 1:
        num_held_out = min(max(num_held_out, 1), len(distinct) - 1)
    if not num_held_out:
        return np.zeros(len(fingerprints), dtype=np.bool_)
    return np.asarray(_mixed(fingerprints, seed) <= distinct[num_held_out - 1])


def is_first(fingerprints: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which conversations [N] say what none before them says."""
    first = np.zeros(len(fingerprints), dtype=np.bool_)
    first[np.unique(fingerprints, return_index=True)[1]] = True
    return first


def _mixed(values: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """A permutation of all 64-bit numbers for each seed (the finalizer of SplitMix64, Steele et al. 2014)."""
    mixed = values + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))
