"""Examples -> Batch: rows padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch

from lit_sft.conversation import IGNORE_INDEX, Example
from lit_sft.data.batch import Batch, PairBatch


def collate(
    rows: Sequence[Sequence[Example]],
    pad_token_id: int,
    *,
    corpora: Sequence[str] = ("",),
    epoch_progress: float = 0.0,
) -> Batch:
    """Rows [T] of examples laid one after the other, T being the longest; each of their sequences is a segment.

    A causal network never looks to the right, so padding there needs no attention mask. The first token of a sequence
    has nothing of its own before it that could predict it, so it carries no loss.

    Args:
        rows: Examples of each row; none at all for the batch of a rank that has no data left: one row of padding.
        pad_token_id: What fills the rows up.
        corpora: Names of all corpora.
        epoch_progress: Share of the epoch that is done with this batch.
    """
    rows = rows or [[]]
    lengths = [[length for example in row for length in example.lengths()] for row in rows]
    num_columns = max(1, *map(sum, lengths))
    shape = (len(rows), num_columns)
    input_ids, labels, position_ids, corpus_ids = (np.empty(shape, np.int64) for _ in range(4))
    segment_ids = np.empty(shape, np.int32)
    columns = np.arange(num_columns)
    for index, row in enumerate(rows):
        num_padded = num_columns - sum(lengths[index])
        # Padding is one stretch more, so every position is written.
        stretches = [*lengths[index], num_padded]
        starts = np.cumsum([0, *lengths[index]])
        np.concatenate([*(e.input_ids for e in row), np.full(num_padded, pad_token_id)], out=input_ids[index])
        np.concatenate([*(e.labels for e in row), np.full(num_padded, IGNORE_INDEX)], out=labels[index])
        labels[index, starts[:-1]] = IGNORE_INDEX
        position_ids[index] = columns - np.repeat(starts, stretches)
        segment_ids[index] = np.repeat([*range(1, len(starts)), 0], stretches)
        corpus_ids[index] = np.repeat([*(e.corpus for e in row for _ in e.starts), 0], stretches)
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(labels),
        torch.from_numpy(position_ids) if max(map(len, lengths)) > 1 else None,
        torch.from_numpy(segment_ids),
        torch.from_numpy(corpus_ids),
        corpora=list(corpora),
        num_tokens=sum(map(sum, lengths)),
        num_supervised=int((labels != IGNORE_INDEX).sum()),
        sources=[example.source for row in rows for example in row],
        epoch_progress=epoch_progress,
    )


def collate_pairs(
    rows: Sequence[Sequence[Example]],
    pad_token_id: int,
    *,
    corpora: Sequence[str] = ("",),
    epoch_progress: float = 0.0,
) -> PairBatch:
    """The same for examples of answers to one prompt, which are compared pair by pair or judged.

    Args:
        rows: Examples of each row; none at all for a rank that has no data left.
        pad_token_id: What fills the rows up.
        corpora: Names of all corpora.
        epoch_progress: Share of the epoch that is done with this batch.
    """
    batch = collate(rows, pad_token_id, corpora=corpora, epoch_progress=epoch_progress)
    examples = [example for row in rows for example in row]
    counts = [len(example.starts) for example in examples]
    pairs: list[tuple[int, int]] = []
    margins: list[float] = []
    is_good: list[bool] = []
    for example, count in zip(examples, counts, strict=True):
        first = len(is_good)
        own = list(combinations(range(first, first + count), 2))
        pairs += own
        margins += [example.judgment or 0.0, *[0.0] * (len(own) - 1)][: len(own)]
        is_good += [count > 1 or example.judgment == 1, *[False] * (count - 1)]
    return PairBatch(
        **vars(batch),
        sequences=torch.arange(len(examples)).repeat_interleave(torch.tensor(counts, dtype=torch.int64)),
        sequence_corpora=torch.tensor([e.corpus for e in examples for _ in e.starts], dtype=torch.int64),
        pairs=torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
        margins=torch.tensor(margins, dtype=torch.float32),
        is_good=torch.tensor(is_good, dtype=torch.bool),
    )
