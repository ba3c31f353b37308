"""Batched answers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_sft import Conversation, Message, open_checkpoint
from lit_sft.generation.generate import Answer, generate_answers
from lit_sft.generation.strategies import Greedy


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
