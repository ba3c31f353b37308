"""Batched answers."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from goldens import golden_model
from transformers import LogitsProcessorList

from lit_sft import Conversation, Message, open_checkpoint
from lit_sft.generation.generate import Answer, batches_by_length, generate_answers, generate_ids, pad_left
from lit_sft.generation.strategies import BeamSearch, Greedy, Strategy, TopK, TopP

STOP = 2


@pytest.fixture(scope="module")
def parts(tiny_folder: Path) -> tuple[Any, Any, Any]:
    checkpoint = open_checkpoint(tiny_folder)
    return checkpoint, checkpoint.load_tokenizer(), checkpoint.load_model()


def answer(parts: tuple[Any, Any, Any], prompts: list[list[int]], stop: list[int], context: int = 256) -> list[Answer]:
    _, tokenizer, model = parts
    strategy = Greedy(max_new_tokens=6)
    return generate_answers(model, tokenizer, prompts, strategy, stop_token_ids=stop, context_length=context)


def prompts_of(parts: tuple[Any, Any, Any], *questions: str) -> list[list[int]]:
    checkpoint, tokenizer, _ = parts
    asked = (Conversation([Message("user", question)]) for question in questions)
    return [checkpoint.prompt_format.encode_prompt(conversation, tokenizer) for conversation in asked]


def test_a_batch_answers_as_its_prompts_do_alone(parts: Any) -> None:
    prompts = prompts_of(parts, "你好", "青榆镇的镇长叫什么名字？请告诉我。", "1加1")
    assert answer(parts, prompts, [2]) == [answer(parts, [prompt], [2])[0] for prompt in prompts]


def test_an_answer_ends_at_the_stop_token_and_does_not_show_it(parts: Any) -> None:
    (prompt,) = prompts_of(parts, "你好")
    with torch.no_grad():
        first = int(parts[2](input_ids=torch.tensor([prompt])).logits[0, -1].argmax())
    (stopped,) = answer(parts, [prompt], [first])
    assert stopped == Answer("", 1, "stop")
    (cut,) = answer(parts, [prompt], [2])
    assert (cut.num_tokens, cut.finish_reason) == (6, "length")


def test_a_prompt_that_fills_the_context_is_reported_and_the_others_are_answered(parts: Any) -> None:
    short, long = prompts_of(parts, "你好", "你好" * 50)
    answers = answer(parts, [long, short], [2], context=len(short) + 2)
    assert answers[0].finish_reason == "prompt-too-long"
    assert answers[1].num_tokens == 2


def test_the_mode_of_the_network_is_left_as_it_was(parts: Any) -> None:
    parts[2].train()
    answer(parts, prompts_of(parts, "你好"), [2])
    assert parts[2].training
    parts[2].eval()


@pytest.mark.parametrize("strategy", [TopP(max_new_tokens=6), TopK(max_new_tokens=6, repetition_penalty=1.3)])
def test_what_is_drawn_does_not_depend_on_the_batch(parts: Any, strategy: Strategy) -> None:
    prompts = prompts_of(parts, *("镇" * n for n in range(1, 17)))
    assert ids_of(parts, prompts, strategy) == [ids_of(parts, [prompt], strategy)[0] for prompt in prompts]
    assert ids_of(parts, prompts, TopP(max_new_tokens=6, seed=1)) != ids_of(parts, prompts, strategy)


@pytest.mark.parametrize("strategy", [TopK(8, temperature=0.7), TopP(0.7), TopP(1.0, temperature=1.5)])
def test_tokens_come_as_often_as_they_are_probable(strategy: TopK | TopP) -> None:
    num_draws = 20_000
    logits = torch.linspace(2, -2, 24)[torch.randperm(24, generator=torch.Generator().manual_seed(0))]
    probabilities = (logits.double() / strategy.temperature).softmax(-1)
    ordered, order = probabilities.sort(descending=True)
    is_kept = torch.arange(24) < strategy.top_k if isinstance(strategy, TopK) else (
        ordered.cumsum(0) - ordered < strategy.top_p
    )  # fmt: skip
    expected = torch.zeros(24, dtype=torch.float64).scatter(0, order, ordered * is_kept)
    expected = expected / expected.sum() * num_draws

    prompts = [[number] for number in range(num_draws)]
    chain = LogitsProcessorList(strategy.processors([0] * num_draws, prompts))
    chosen = chain(torch.LongTensor(prompts), logits.repeat(num_draws, 1))
    counts = chosen.argmax(-1).bincount(minlength=24).double()
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    chi_square = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    degrees = int(kept.sum()) - 1
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5


def ids_of(parts: tuple[Any, Any, Any], prompts: list[list[int]], strategy: Strategy) -> list[list[int]]:
    ids = generate_ids(parts[2], list(prompts), strategy, stop=[2], room=strategy.max_new_tokens)
    return [row[: row.index(2) + 1] if 2 in row else row for row in ids]


def test_prompts_of_similar_length_share_a_batch_that_keeps_to_the_budget() -> None:
    lengths = [5, 90, 7, 90, 300, 6, 80, 5, 500]
    ways = [Greedy(max_new_tokens=20), BeamSearch(num_beams=2, max_new_tokens=10)]
    batches = batches_by_length(lengths, ways, context_length=400, token_budget=400)
    assert batches == [[8], [4], [1, 3], [6, 2], [5, 0, 7]]
    # Two beams of 90 + 10 tokens are more than an answer of 90 + 20.
    assert batches_by_length(lengths, ways, context_length=400, token_budget=399)[2:4] == [[1], [3]]


def test_answers_that_may_have_other_lengths_have_a_batch_of_their_own() -> None:
    batches = batches_by_length([8, 3, 9, 4], [Greedy(max_new_tokens=4)], context_length=11)
    assert batches == [[2], [0], [3, 1]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "warmer"),
    [
        (TopK(12, temperature=0.7, seed=3), TopK(12)),
        (TopP(0.7, temperature=0.8), TopP(0.7)),
        (TopP(1.0), TopP(1.0, temperature=1.2)),
    ],
    ids=["top-k", "top-p", "temperature"],
)
def test_a_model_says_each_token_as_often_as_it_is_probable(strategy: TopK | TopP, warmer: TopK | TopP) -> None:
    """Prompts of all lengths, padded in batches; the second token comes from the cache and follows the first."""
    model, chance = golden_model("baichuan-7b"), Random(0)
    prompts = [[chance.randrange(10, 1900) for _ in range(chance.randrange(2, 9))] for _ in range(1500)]
    batches = [prompts[start : start + 500] for start in range(0, len(prompts), 500)]
    drawn = [ids for batch in batches for ids in generate_ids(model, list(batch), strategy, stop=[STOP], room=2)]
    first = [(prompt, ids[0]) for prompt, ids in zip(prompts, drawn, strict=True)]
    second = [([*prompt, ids[0]], ids[1]) for prompt, ids in zip(prompts, drawn, strict=True) if ids[0] != STOP]
    logits = torch.cat([next_logits(model, [context for context, _ in part]) for part in (first, second)])
    tokens = torch.tensor([token for _, token in first + second])
    exact = probabilities(logits, strategy)
    assert exact.gather(1, tokens[:, None]).min() > 0
    assert p_value(exact, tokens) > 0.01
    assert p_value(probabilities(logits, warmer), tokens) < 1e-4


@torch.no_grad()
def next_logits(model: Any, contexts: list[list[int]]) -> torch.Tensor:
    """Logits [N, V] of what follows each."""
    input_ids, mask = pad_left(contexts, 0)
    found: torch.Tensor = model(input_ids=input_ids, attention_mask=mask).logits[:, -1]
    return found


def probabilities(logits: torch.Tensor, strategy: TopK | TopP) -> torch.Tensor:
    """By the definition [N, V]: of the kept tokens, in proportion to exp(logit / temperature)."""
    full = (logits.double() / strategy.temperature).softmax(-1)
    ordered, order = full.sort(descending=True)
    if isinstance(strategy, TopK):
        is_kept = torch.arange(full.shape[1]) < strategy.top_k
    else:
        is_kept = ordered.cumsum(-1) - ordered < strategy.top_p
    kept = torch.zeros_like(full).scatter(1, order, ordered * is_kept)
    return kept / kept.sum(-1, keepdim=True)


def p_value(exact: torch.Tensor, tokens: torch.Tensor) -> float:
    """Chi-square over the ranks of what was drawn, in bins that are expected about 50 times or more."""
    ordered, order = exact.sort(descending=True)
    expected = ordered.sum(0)
    ranks = (order == tokens[:, None]).int().argmax(-1)
    observed = ranks.bincount(minlength=len(expected)).double()
    _, bins = (expected.cumsum(0) / 50).floor().unique_consecutive(return_inverse=True)
    observed, expected = (torch.zeros(int(bins.max()) + 1).double().index_add(0, bins, n) for n in (observed, expected))
    chi_square = ((observed - expected) ** 2 / expected.clamp(min=1)).sum()
    return float(torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2).double(), chi_square / 2))


def test_prompts_are_padded_on_the_left() -> None:
    input_ids, mask = pad_left([[1, 2, 3], [4]], pad_token_id=9)
    assert input_ids.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
