"""Sequences -> scores, under a network with a head of one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_sft.conversation import Message, PromptFormat

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKEN_BUDGET = 8192
"""Tokens with their padding that are scored at once."""


def encode_answer(prompt: Sequence[Message], answer: str, prompt_format: PromptFormat, tokenizer: Any) -> list[int]:
    """Ids of prompt and answer, up to the token that ends it, as a reward model reads them in training.

    Raises:
        BadRecord: If the format cannot write it.
    """
    prompt_ids, (reply_ids,) = prompt_format.encode_answers(prompt, [Message("assistant", answer)], tokenizer)
    return [*prompt_ids, *reply_ids]


@torch.no_grad()
def score_sequences(network: PreTrainedModel, head: nn.Module, sequences: Sequence[Sequence[int]]) -> list[float]:
    """The score of each sequence: that of its last token.

    Padding stands on the right, where a causal network does not look, so it needs no mask.

    Args:
        network: With its adapters.
        head: Maps [N, H] to [N].
        sequences: Ids of prompt and answer.
    """
    scores: dict[int, float] = {}
    device = device_of(network)
    for numbers in _batches([len(sequence) for sequence in sequences]):
        rows = [sequences[number] for number in numbers]
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in rows], device=device)
        hidden: Tensor = network.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        last = torch.tensor([len(row) - 1 for row in rows], device=device)
        found = head(hidden[torch.arange(len(rows), device=device), last])
        scores |= dict(zip(numbers, found.tolist(), strict=True))
    return [scores[number] for number in range(len(sequences))]


def device_of(network: PreTrainedModel) -> torch.device:
    """Where a network reads ids."""
    return next(network.get_input_embeddings().parameters()).device


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of the sequences that are scored together, the longest first."""
    batches: list[list[int]] = []
    width = 0
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        if not batches or width * (len(batches[-1]) + 1) > TOKEN_BUDGET:
            batches.append([])
            width = lengths[number]
        batches[-1].append(number)
    return batches
