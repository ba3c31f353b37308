"""Which records train and which are held out: a function of what is said and of the seed, not of its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_sft.data.encoder import Selection
from lit_sft.data.scan import ScannedCorpus


@dataclass(frozen=True)
class Split:
    """Records to train on and records held out, corpus after corpus; `duplicates` say again what another says."""

    train: Selection
    validation: Selection
    duplicates: Selection


def split_corpora(corpora: Sequence[ScannedCorpus], fraction: float, seed: int, *, deduplicate: bool) -> Split:
    """Share out the usable records of all corpora.

    Args:
        corpora: Where they are.
        fraction: Share of the distinct conversations to hold out.
        seed: Another one holds out others.
        deduplicate: Whether a record that says what one before it says is left out.
    """
    corpus_of, records = all_good(corpora)
    is_new = is_first(np.concatenate([corpus.scan.fingerprints[corpus.scan.good] for corpus in corpora]))
    is_wanted = is_new if deduplicate else np.ones_like(is_new)
    is_held_out = held_out(split_keys(corpora, (corpus_of, records)), fraction, seed)

    def those(chosen: NDArray[np.bool_]) -> Selection:
        return corpus_of[chosen], records[chosen]

    return Split(those(is_wanted & ~is_held_out), those(is_wanted & is_held_out), those(~is_new))


def split_keys(corpora: Sequence[ScannedCorpus], selection: Selection) -> NDArray[np.uint64]:
    """By what each of the records [N] is held out."""
    corpus_of, records = selection
    keys = np.zeros(len(records), dtype=np.uint64)
    for number, corpus in enumerate(corpora):
        own = corpus_of == number
        keys[own] = corpus.scan.split_keys[records[own]]
    return keys


def all_good(corpora: Sequence[ScannedCorpus]) -> Selection:
    """Every usable record."""
    good = [corpus.scan.good for corpus in corpora]
    numbers = [np.full(len(records), number, dtype=np.uint16) for number, records in enumerate(good)]
    return np.concatenate(numbers), np.concatenate(good)


def held_out(fingerprints: NDArray[np.uint64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which records [N] are held out.

    The distinct ones that a hash puts first; records of the same key go together, so that none of them is trained on.

    Args:
        fingerprints: The key of each record [N]: what a conversation says, or the prompt of a preference.
        fraction: Share of the distinct keys to hold out; at least one if it is above zero and there are two.
        seed: Another one holds out others.
    """
    mixed = _mixed(fingerprints, seed)
    distinct = np.sort(mixed[is_first(mixed)])
    num_held_out = round(fraction * len(distinct))
    if fraction > 0 and len(distinct) > 1:
        num_held_out = min(max(num_held_out, 1), len(distinct) - 1)
    if not num_held_out:
        return np.zeros(len(fingerprints), dtype=np.bool_)
    return np.asarray(mixed <= distinct[num_held_out - 1])


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
