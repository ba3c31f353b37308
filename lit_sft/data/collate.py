"""Examples -> Batch: rows padded on the right; prompts -> PromptBatch: rows padded on the left."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lit_sft.conversation import IGNORE_INDEX, Batch, Example


def collate(examples: Sequence[Example], pad_token_id: int) -> Batch:
    """One row [T] for each example, T being the longest.

    A causal network never looks to the right, so padding there needs no attention mask.
    """
    length = max(len(example) for example in examples)
    shape = (len(examples), length)
    input_ids = torch.full(shape, pad_token_id)
    labels = torch.full(shape, IGNORE_INDEX)
    segment_ids = torch.zeros(shape, dtype=torch.int32)
    for row, example in enumerate(examples):
        input_ids[row, : len(example)] = torch.tensor(example.input_ids)
        labels[row, : len(example)] = torch.tensor(example.labels)
        segment_ids[row, : len(example)] = 1
    return Batch(
        input_ids,
        labels,
        segment_ids,
        num_tokens=sum(len(example) for example in examples),
        # The first position of a row predicts nothing that comes before it.
        num_supervised=int((labels[:, 1:] != IGNORE_INDEX).sum()),
        sources=[example.source for example in examples],
    )


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`input_ids` and `attention_mask` [B, T], every row ending at the right edge, where generation goes on."""
    length = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), length), pad_token_id)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for index, row in enumerate(rows):
        input_ids[index, length - len(row) :] = torch.tensor(row)
        attention_mask[index, length - len(row) :] = 1
    return input_ids, attention_mask
