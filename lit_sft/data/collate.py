"""Examples -> Batch: rows padded on the right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lit_sft.conversation import IGNORE_INDEX, Batch, Example


def collate(
    rows: Sequence[Sequence[Example]],
    pad_token_id: int,
    *,
    corpora: Sequence[str] = ("",),
    epoch_progress: float = 0.0,
) -> Batch:
    """Rows [T] of examples laid one after the other, T being the longest.

    A causal network never looks to the right, so padding there needs no attention mask. The first token of an example
    has nothing of its own before it that could predict it, so it carries no loss.

    Args:
        rows: Examples of each row; none at all for the batch of a rank that has no data left: one row of padding.
        pad_token_id: What fills the rows up.
        corpora: Names of all corpora.
        epoch_progress: Share of the epoch that is done with this batch.
    """
    rows = rows or [[]]
    lengths = [[len(example) for example in row] for row in rows]
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
        segment_ids[index] = np.repeat([*range(1, len(row) + 1), 0], stretches)
        corpus_ids[index] = np.repeat([*(e.corpus for e in row), 0], stretches)
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(labels),
        torch.from_numpy(position_ids) if max(map(len, rows)) > 1 else None,
        torch.from_numpy(segment_ids),
        torch.from_numpy(corpus_ids),
        corpora=list(corpora),
        num_tokens=sum(map(sum, lengths)),
        num_supervised=int((labels != IGNORE_INDEX).sum()),
        sources=[example.source for row in rows for example in row],
        epoch_progress=epoch_progress,
    )
