"""Which records an epoch consists of, and in what order: a function of the seed and the epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray


def epoch_order(sizes: Sequence[int], counts: Sequence[int], *, seed: int, epoch: int) -> NDArray[np.uint32]:
    """The records of an epoch, those of all corpora shuffled together.

    A corpus is an endless stream of its records: pass after pass, each in another order. An epoch takes the next
    `counts[i]` of corpus i. So a corpus that runs out begins again, one that is not used up goes on in the next
    epoch, and with `counts == sizes` every record stands once in each epoch.

    Args:
        sizes: Records of each corpus, fewer than 2**32 together.
        counts: Records that an epoch takes of each corpus.
        seed: Non-negative.
        epoch: Counted from 0. Any costs the same: none depends on the one before.

    Returns:
        Indices [sum(counts)] into the corpora laid end to end.

    Raises:
        ValueError: If records are to come from a corpus that has none.
    """
    parts = [np.empty(0, dtype=np.uint32)]
    first = 0
    for corpus, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        if count and not size:
            raise ValueError(f"corpus {corpus} has no records, but an epoch is to take {count}")
        records = np.arange(first, first + size, dtype=np.uint32)
        parts += _stream(records, epoch * count, (epoch + 1) * count, seed, corpus)
        first += size
    order = np.concatenate(parts)
    _generator(seed, len(sizes), epoch).shuffle(order)
    return order


def _stream(records: NDArray[np.uint32], start: int, stop: int, seed: int, corpus: int) -> Iterator[NDArray[np.uint32]]:
    """Positions `start` to `stop` of the endless stream of a corpus."""
    while start < stop:
        number, begin = divmod(start, len(records))
        part = _generator(seed, corpus, number).permutation(records)[begin : begin + stop - start]
        yield part
        start += len(part)


def _generator(seed: int, *key: int) -> np.random.Generator:
    """Randomness of its own for each key; the bit generator is named because numpy's default may change."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))
