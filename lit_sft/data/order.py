"""The order of training: micro-batches as a function of (seed, epoch), for any ranks and workers, from any position.

The records of an epoch are cut into windows; each window is cut into blocks by itself, so that a resumed run needs to
know nothing of the windows before its own. The blocks of all windows are one stream, from which all ranks take their
share of each step: so a step sees the same rows, whether its four are one micro-batch of one rank or one each of four.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from lit_sft.data.encoder import Encoder, Selection
from lit_sft.data.mixture import epoch_order
from lit_sft.data.packing import cut_window, group

WINDOW = 4096
"""Examples that are packed, or grouped by length, among themselves."""

MAX_AHEAD = 4096
"""Batches that may be on their way to the network; the positions of more are forgotten."""


@dataclass(frozen=True)
class Position:
    """Where an epoch goes on.

    Args:
        epoch: Which one.
        num_batches: Batches of it that every rank has trained on.
        window: The window of the next block.
        offset: Its place in the window.
    """

    epoch: int = 0
    num_batches: int = 0
    window: int = 0
    offset: int = 0


@dataclass(frozen=True)
class MicroBatch:
    """Rows of examples, each a (corpus, record); `epoch_progress` is the part of the epoch that is done with it.

    `turn` says the how manieth time it comes, from 0, where each comes several times.
    """

    rows: list[list[tuple[int, int]]]
    epoch_progress: float
    turn: int = 0


@dataclass(frozen=True)
class Mixture:
    """What an epoch consists of.

    Args:
        records: All that can be trained on, corpus after corpus.
        sizes: How many each corpus has.
        counts: How many of each an epoch takes.
        seed: Decides the order.
    """

    records: Selection
    sizes: list[int]
    counts: list[int]
    seed: int

    def epoch(self, epoch: int) -> Selection:
        """The records of an epoch in order."""
        order = epoch_order(self.sizes, self.counts, seed=self.seed, epoch=epoch)
        return self.records[0][order], self.records[1][order]


@dataclass(frozen=True)
class Batching:
    """How the examples of a window become micro-batches.

    Args:
        row_length: Tokens of a row at most.
        num_rows: Rows of a micro-batch, as long as that.
        packing: Several examples in a row; otherwise as many shorter rows of one example as fit into those tokens.
    """

    row_length: int
    num_rows: int
    packing: bool

    @property
    def num_blocks(self) -> int:
        """Blocks of a micro-batch."""
        return self.num_rows if self.packing else 1

    @property
    def num_turns(self) -> int:
        """How many times each micro-batch comes, one after the other."""
        return 1

    @property
    def budget(self) -> int:
        """Tokens of a micro-batch at most, padding included."""
        return self.num_rows * self.row_length

    def cut(self, lengths: NDArray[np.int64], *, seed: int, epoch: int, window: int) -> list[list[NDArray[np.int64]]]:
        """Blocks of rows of places in `lengths`; examples of length 0 were left out and stand in none."""
        kept = np.flatnonzero(lengths)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch, window, 1))))
        blocks = cut_window(
            lengths[kept], row_length=self.row_length, budget=self.budget, packing=self.packing, rng=rng
        )
        return [[kept[row] for row in rows] for rows in blocks]


class EpochOrder(Sampler[MicroBatch]):
    """The micro-batches of one rank in one epoch.

    Every rank gets equally many; where they do not come out even, the last of some is empty.

    Args:
        mixture: What an epoch consists of.
        batching: How it is cut.
        encoder: Waits until the records of a window are encoded.
        start: Where training goes on.
        num_ranks: Processes that train together.
        rank: Which of them this is.
    """

    def __init__(
        self, mixture: Mixture, batching: Batching, encoder: Encoder, *, start: Position, num_ranks: int, rank: int
    ) -> None:
        self._mixture = mixture
        self._batching = batching
        self._encoder = encoder
        self._start = start
        self._num_ranks = num_ranks
        self._rank = rank
        # Fetching begins before the trainer says which epoch it is.
        self._epoch = start.epoch
        self._records: tuple[int, Selection] | None = None
        self._positions = OrderedDict({(start.epoch, start.num_batches): start})

    def set_epoch(self, epoch: int) -> None:
        """The trainer calls it when an epoch begins."""
        self._epoch = epoch

    def position_after(self, epoch: int, num_batches: int) -> Position:
        """Where the epoch goes on after so many batches, the last of which was handed out a while ago at most."""
        return self._positions[epoch, num_batches] if num_batches else Position(epoch)

    def num_batches_estimated(self) -> int:
        """Batches of an epoch, reckoned from its first window; exact if there is no other."""
        corpus_of, _ = first = self.first_window(0)
        records = self._records_of(0)
        self._encoder.need(first)
        blocks = self._batching.cut(self._encoder.num_tokens(first), seed=self._mixture.seed, epoch=0, window=0)
        num_blocks = len(blocks) * len(records[0]) / len(corpus_of)
        return ceil(num_blocks / (self._batching.num_blocks * self._num_ranks)) * self._batching.num_turns

    def first_window(self, epoch: int) -> Selection:
        """The records with which an epoch begins."""
        return _part(self._records_of(epoch), slice(0, WINDOW))

    def __iter__(self) -> Iterator[MicroBatch]:
        # Every rank walks the whole stream of blocks and takes its own share of each step, so ranks need not talk to
        # each other and a batch depends on (seed, epoch) only. Reading is one step ahead of what is handed out: only
        # that shows which step is the last, whose progress is 1. The position behind each step is remembered by its
        # number, as loaders fetch ahead and a checkpoint asks for the step that was trained on, not the last one
        # fetched. A resumed run cuts only the windows from its position on.
        position = self._start if self._start.epoch == self._epoch else Position(self._epoch)
        blocks = self._blocks(position)
        share_of_rank, num_turns = self._batching.num_blocks, self._batching.num_turns
        following = list(islice(blocks, share_of_rank * self._num_ranks))
        while handed_out := following:
            following = list(islice(blocks, share_of_rank * self._num_ranks))
            own = handed_out[self._rank * share_of_rank : (self._rank + 1) * share_of_rank]
            rows = [row for block in own for row in block.rows]
            begun, done = handed_out[0].begun, handed_out[-1].done if following else 1.0
            before = position.window, position.offset
            for turn in range(position.num_batches % num_turns, num_turns):
                is_last = turn + 1 == num_turns
                place = handed_out[-1].behind if is_last else before
                position = Position(position.epoch, position.num_batches + 1, *place)
                self._remember(position)
                yield MicroBatch(rows, done if is_last else begun + (done - begun) * (turn + 1) / num_turns, turn)

    def _remember(self, position: Position) -> None:
        self._positions[position.epoch, position.num_batches] = position
        if len(self._positions) > MAX_AHEAD:
            self._positions.popitem(last=False)

    def _records_of(self, epoch: int) -> Selection:
        """Those of an epoch; the last one asked for is kept, as a run does not go back."""
        if self._records is None or self._records[0] != epoch:
            self._records = epoch, self._mixture.epoch(epoch)
        return self._records[1]

    def _blocks(self, position: Position) -> Iterator[_Block]:
        """From a position to the end of its epoch."""
        records = self._records_of(position.epoch)
        total = len(records[0])
        offset = position.offset
        self._encoder.begin(_part(records, slice(position.window * WINDOW, None)))
        for window in range(position.window, -(-total // WINDOW)):
            chosen = _part(records, slice(window * WINDOW, (window + 1) * WINDOW))
            self._encoder.await_begun(chosen)
            lengths = self._encoder.num_tokens(chosen)
            cut = self._batching.cut(lengths, seed=self._mixture.seed, epoch=position.epoch, window=window)
            corpus_of, record = (part.tolist() for part in chosen)
            for place in range(offset, len(cut)):
                rows = [[(corpus_of[index], record[index]) for index in row] for row in cut[place]]
                begun, done = (window * WINDOW + len(lengths) * end / len(cut) for end in (place, place + 1))
                yield _Block(rows, begun / total, done / total, (window, place + 1))
            offset = 0


class _Block(NamedTuple):
    """The shares of the epoch that are done before and with it, and the (window, offset) `behind` it."""

    rows: list[list[tuple[int, int]]]
    begun: float
    done: float
    behind: tuple[int, int]


def _part(selection: Selection, wanted: slice) -> Selection:
    return selection[0][wanted], selection[1][wanted]


class HeldOutOrder(Sampler[MicroBatch]):
    """One rank's share of records that are measured: similar lengths together, each record once.

    Args:
        records: What is measured.
        batching: How much a micro-batch may hold.
        encoder: Waits until they are encoded.
        num_ranks: Processes that measure together; each gets equally many batches, the last of some is empty.
        rank: Which of them this is.
    """

    def __init__(self, records: Selection, batching: Batching, encoder: Encoder, *, num_ranks: int, rank: int) -> None:
        encoder.need(records, "held-out examples")
        lengths = encoder.num_tokens(records)
        kept = np.flatnonzero(lengths)
        batches = group(lengths[kept], batching.budget)
        corpus_of, record = (part.tolist() for part in records)
        own = [[[(corpus_of[i], record[i])] for i in kept[batch].tolist()] for batch in batches[rank::num_ranks]]
        num_batches = -(-len(batches) // num_ranks)
        self._batches = [*own, *([[]] * (num_batches - len(own)))]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[MicroBatch]:
        for rows in self._batches:
            yield MicroBatch(rows, epoch_progress=1.0)
