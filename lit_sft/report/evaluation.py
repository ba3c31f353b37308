"""Puts the same questions to one loaded model, before and after tuning."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch

from lit_sft.bars import bar
from lit_sft.conversation import IGNORE_INDEX, Example, Prompt
from lit_sft.data.batch import Batch
from lit_sft.data.collate import collate
from lit_sft.generation.generate import Answer, generate_answers
from lit_sft.generation.strategies import Strategy
from lit_sft.report.metrics import HeldOutLosses, Reply
from lit_sft.stages._answering import Answering

PROBE_BATCHES = 200
"""Micro-batches of held-out data that a forgetting probe reads at most."""


@dataclass(frozen=True)
class Evaluation:
    """What one state of the model said: replies by strategy, in the order of the prompts; and what was probed."""

    replies: dict[str, list[Reply]]
    probed: HeldOutLosses


def evaluate(
    stage: Answering,
    prompts: Sequence[Prompt],
    strategies: Mapping[str, Strategy],
    probes: Sequence[Iterable[Batch]],
    *,
    name: str,
    batch_size: int,
) -> Evaluation:
    """Answers, likelihood of the references, and the perplexity of the probes.

    Args:
        stage: The model in the state that is meant.
        prompts: What to ask.
        strategies: How tokens are chosen, by name.
        probes: Held-out data, batch by batch.
        name: Of the state, for the progress bar.
        batch_size: Prompts that are answered at once.
    """
    stage.eval()
    likelihoods = _likelihoods(stage, prompts, batch_size)
    replies = {}
    for strategy_name, strategy in strategies.items():
        answers = _answers(stage, prompts, strategy, batch_size, f"{name}, {strategy_name}")
        replies[strategy_name] = [
            Reply(answer.text, answer.finish_reason == "stop", answer.num_tokens, loss, int(tokens), int(num_correct))
            for answer, (loss, tokens, num_correct) in zip(answers, likelihoods, strict=True)
        ]
    return Evaluation(replies, _probe(stage, probes))


def _answers(
    stage: Answering, prompts: Sequence[Prompt], strategy: Strategy, batch_size: int, name: str
) -> list[Answer]:
    """In the order of the prompts; similar lengths together, so that little is padded."""
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number].input_ids))
    answers: dict[int, Answer] = {}
    with bar(total=len(prompts), desc=name, unit="answer", leave=False) as shown:
        for numbers in _chunks(order, batch_size):
            found = generate_answers(
                stage.causal_lm,
                stage.tokenizer,
                [prompts[number].input_ids for number in numbers],
                strategy,
                stop_token_ids=stage.checkpoint.prompt_format.stop_token_ids(stage.tokenizer),
                context_length=stage.checkpoint.context_length,
            )
            answers |= dict(zip(numbers, found, strict=True))
            shown.update(len(numbers))
    return [answers[number] for number in range(len(prompts))]


@torch.no_grad()
def _likelihoods(stage: Answering, prompts: Sequence[Prompt], batch_size: int) -> list[tuple[float, float, float]]:
    """Loss, tokens and num_correct of each reference; zeros where there is none, or it does not fit."""
    totals = [(0.0, 0.0, 0.0)] * len(prompts)
    fitting = [
        number
        for number, prompt in enumerate(prompts)
        if prompt.reference_ids and len(prompt.input_ids) + len(prompt.reference_ids) <= stage.checkpoint.context_length
    ]
    for numbers in _chunks(fitting, batch_size):
        rows = [[_example(prompts[number], place)] for place, number in enumerate(numbers)]
        corpora = [str(number) for number in numbers]  # each prompt is counted as a corpus of its own
        pad = stage.tokenizer.pad_token_id
        batch = collate(rows, 0 if pad is None else int(pad), corpora=corpora).to(stage.device)
        for number, (loss, tokens, num_correct) in zip(
            numbers, stage.token_totals(batch).by_group.tolist(), strict=True
        ):
            totals[number] = (loss, tokens, num_correct)
    return totals


def _chunks(numbers: list[int], size: int) -> list[list[int]]:
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


def _example(prompt: Prompt, place: int) -> Example:
    labels = [IGNORE_INDEX] * len(prompt.input_ids) + list(prompt.reference_ids)
    return Example([*prompt.input_ids, *prompt.reference_ids], labels, prompt.source, corpus=place)


@torch.no_grad()
def _probe(stage: Answering, probes: Sequence[Iterable[Batch]]) -> HeldOutLosses:
    found: HeldOutLosses = defaultdict(dict)
    for probe in probes:
        for batch in islice(probe, PROBE_BATCHES):
            alone, corpora = _each_alone(batch)
            for source, corpus, (loss, tokens, _) in zip(
                batch.sources, corpora, stage.token_totals(alone.to(stage.device)).by_group.tolist(), strict=True
            ):
                if tokens:
                    found[corpus][source] = (loss, tokens)
    return dict(found)


def _each_alone(batch: Batch) -> tuple[Batch, list[str]]:
    """The micro-batch with each example counted as a corpus of its own, and the corpus to which each belongs."""
    num_examples = batch.segment_ids.amax(1).long()  # of each row [B]
    first = num_examples.cumsum(0) - num_examples
    numbers = first[:, None] + batch.segment_ids.long() - 1  # [B, T]
    is_text = batch.segment_ids > 0
    corpus_of = torch.zeros(len(batch.sources), dtype=torch.long)
    corpus_of[numbers[is_text]] = batch.corpus_ids[is_text]
    alone = replace(batch, corpus_ids=numbers.clamp(min=0), corpora=batch.sources)  # padding carries no loss
    return alone, [batch.corpora[number] for number in corpus_of.tolist()]
