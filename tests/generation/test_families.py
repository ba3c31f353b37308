"""Decoding on every family: what transformers' own `generate` chooses, whatever stands beside a prompt."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from goldens import GOLDEN_MODELS, golden_checkpoint, golden_model
from transformers import GenerationConfig

from lit_sft import Conversation, Message, open_checkpoint
from lit_sft.generation.generate import generate_ids
from lit_sft.generation.strategies import BeamSearch, Greedy, Strategy, TopP

pytestmark = pytest.mark.slow  # as a whole

FAMILIES = [*GOLDEN_MODELS, "native"]
TEXT = "青榆镇在银镜湖的东岸，一共住着八百人。镇长名叫周叶，他养了一只灰猫，每天早上八点坐渡船去图书馆。"
EVERYWHERE = [
    Greedy(max_new_tokens=8, repetition_penalty=1.3, no_repeat_ngram_size=2),
    BeamSearch(num_beams=2, max_new_tokens=8, repetition_penalty=1.2, no_repeat_ngram_size=3),
]
# What a strategy computes without penalties no family changes; what it asks of a family's cache those above show.
PLAIN = [Greedy(max_new_tokens=8), BeamSearch(num_beams=3, max_new_tokens=8, length_penalty=0.6)]
CASES = [
    *((name, strategy) for name in FAMILIES for strategy in EVERYWHERE),
    *((name, strategy) for name in ("chatglm-6b", "native") for strategy in PLAIN),
]


SOME = slice(None, None, 5)


@dataclass
class Subject:
    model: Any
    prompts: list[list[int]]
    """Sixteen, of very different lengths; `SOME` of them are asked alone, too."""
    stop: list[int]
    """Of the family, and a token that ends a greedy answer to one of the prompts early."""


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request: pytest.FixtureRequest, tiny: Callable[[str], Path]) -> Subject:
    if request.param == "native":
        checkpoint = open_checkpoint(tiny("native"))
        model = checkpoint.load_model()
    else:
        checkpoint, model = golden_checkpoint(request.param), golden_model(request.param)
    tokenizer = checkpoint.load_tokenizer()
    asked = (Conversation([Message("user", TEXT[number : 2 + 3 * number])]) for number in range(16))
    prompts = [checkpoint.prompt_format.encode_prompt(conversation, tokenizer) for conversation in asked]
    stop = checkpoint.prompt_format.stop_token_ids(tokenizer)
    answer = theirs(model, prompts[3], Greedy(max_new_tokens=6), stop)
    return Subject(model, prompts, [*stop, answer[-1]])


def theirs(model: Any, prompt: list[int], strategy: Strategy, stop: list[int]) -> list[int]:
    """What transformers alone answers to a prompt alone."""
    config = GenerationConfig(
        max_new_tokens=strategy.max_new_tokens,
        num_beams=strategy.num_beams,
        length_penalty=getattr(strategy, "length_penalty", 1.0),
        repetition_penalty=strategy.repetition_penalty,
        no_repeat_ngram_size=strategy.no_repeat_ngram_size,
        do_sample=False,
        eos_token_id=stop,
        pad_token_id=stop[0],
    )
    ids = torch.tensor([prompt])
    found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return found[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


def ours(subject: Subject, prompts: list[list[int]], strategy: Strategy) -> list[list[int]]:
    """New ids up to the first that ends an answer."""
    answers = generate_ids(subject.model, list(prompts), strategy, stop=subject.stop, room=strategy.max_new_tokens)
    ends = [next((n for n, token in enumerate(ids, 1) if token in subject.stop), len(ids)) for ids in answers]
    return [ids[:end] for ids, end in zip(answers, ends, strict=True)]


@pytest.mark.parametrize(
    ("subject", "strategy"), CASES, indirect=["subject"], ids=lambda value: getattr(value, "name", value)
)
def test_a_padded_batch_has_the_ids_of_transformers_for_each_prompt_alone(subject: Subject, strategy: Strategy) -> None:
    expected = [theirs(subject.model, prompt, strategy, subject.stop) for prompt in subject.prompts[SOME]]
    assert ours(subject, subject.prompts, strategy)[SOME] == expected


@pytest.mark.parametrize(
    "strategy",
    [Greedy(max_new_tokens=8), TopP(0.9, max_new_tokens=4, temperature=0.8, repetition_penalty=1.2)],
    ids=lambda strategy: type(strategy).__name__,
)
def test_one_prompt_at_a_time_and_sixteen_have_the_same_answers(subject: Subject, strategy: Strategy) -> None:
    alone = [ours(subject, [prompt], strategy)[0] for prompt in subject.prompts[SOME]]
    assert ours(subject, subject.prompts, strategy)[SOME] == alone
