"""Answers behind prompts that are not theirs: how far a policy has moved where nothing was to be learned."""

from __future__ import annotations

from lit_sft.conversation import IGNORE_INDEX, Example
from lit_sft.data.batch import PairBatch
from lit_sft.data.collate import collate_pairs
from lit_sft.stages._sequences import sequence_numbers


def mismatched(batch: PairBatch, context_length: int) -> PairBatch | None:
    """Each prompt of a micro-batch with the first answer of the record before it, a row each (KTO: arXiv:2402.01306).

    None where all prompts are one.

    Args:
        batch: At least two records of different prompts.
        context_length: Tokens of prompt and answer at most; what is longer is left out.
    """
    prompts, answers = _taken_apart(batch)
    records = batch.sequences.tolist()
    first = {record: number for number, record in reversed(list(enumerate(records)))}
    rows = []
    for record, number in sorted(first.items()):
        other = first[(record - 1) % len(first)]
        ids = [*prompts[number], *answers[other]]
        if prompts[other] != prompts[number] and len(ids) <= context_length:
            labels = [IGNORE_INDEX] * len(prompts[number]) + list(answers[other])
            rows.append([Example(ids, labels, batch.sources[record], judgment=0.0)])
    return collate_pairs(rows, 0, corpora=batch.corpora).to(batch.input_ids.device) if rows else None


def _taken_apart(batch: PairBatch) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and answers of all segments."""
    prompts: list[list[int]] = [[] for _ in batch.sequences]
    answers: list[list[int]] = [[] for _ in batch.sequences]
    is_text = (batch.segment_ids != 0).flatten()
    numbers = sequence_numbers(batch)[is_text].tolist()
    ids, labels = (tensor.flatten()[is_text].tolist() for tensor in (batch.input_ids, batch.labels))
    for number, token, label in zip(numbers, ids, labels, strict=True):
        (prompts if label == IGNORE_INDEX else answers)[number].append(token)
    return prompts, answers
