"""Batched answers from any causal LM of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.distributed.fsdp import FSDPModule

from lit_sft.data.collate import pad_left
from lit_sft.generation.strategies import Strategy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FinishReason = Literal["stop", "length", "prompt-too-long"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the network said.

    `num_tokens` counts the end-of-turn token too. `finish_reason`: `stop`: the network ended its turn; `length`: it
    was cut at max_new_tokens or at the end of the context; `prompt-too-long`: the prompt left no room to answer.
    """

    text: str
    num_tokens: int
    finish_reason: FinishReason


@torch.no_grad()  # not inference_mode: what is gathered of sharded weights must serve training too
def generate_answers(
    model: PreTrainedModel,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    strategy: Strategy,
    *,
    stop_token_ids: Sequence[int],
    context_length: int,
    streamer: Any = None,
) -> list[Answer]:
    """One answer for each prompt, in order; the padding of a batch does not change them.

    Args:
        model: The network; its mode is left as it was.
        tokenizer: Turns answers into text.
        prompts: Ids of each prompt.
        strategy: How tokens are chosen.
        stop_token_ids: Tokens that end an answer.
        context_length: Tokens of prompt and answer together at most.
        streamer: Of transformers; receives the tokens of a single prompt as they are chosen, not from beam search.
    """
    answers: list[Answer | None] = [
        None if len(p) < context_length else Answer("", 0, "prompt-too-long") for p in prompts
    ]
    open_rows = [index for index, answer in enumerate(answers) if answer is None]
    if open_rows:
        sequences = _generate(model, [prompts[row] for row in open_rows], strategy, list(stop_token_ids), streamer)
        for row, new_ids in zip(open_rows, sequences, strict=True):
            answers[row] = _answer(new_ids[: context_length - len(prompts[row])], tokenizer, set(stop_token_ids))
    return [answer for answer in answers if answer is not None]


def decode_answer(ids: Sequence[int], tokenizer: Any) -> str:
    """The text of an answer, without control tokens; bytes that are no whole character become U+FFFD."""
    # Some original tokenizers "clean up" blanks before punctuation, which damages text and above all code.
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.strip()


def _generate(
    model: Any, prompts: list[Sequence[int]], strategy: Strategy, stop: list[int], streamer: Any
) -> list[list[int]]:
    """New ids of each prompt, padded with the stop token."""
    from transformers import GenerationConfig

    # Padding with the stop token is safe: an answer is read up to the first.
    input_ids, attention_mask = pad_left(prompts, pad_token_id=stop[0])
    was_training = model.training
    model.eval()
    try:
        sequences: torch.Tensor = model.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            generation_config=GenerationConfig(**strategy.options(), eos_token_id=stop, pad_token_id=stop[0]),
            streamer=streamer,
            # Where weights are sharded, every process goes on until the last has its answer.
            synced_gpus=any(isinstance(module, FSDPModule) for module in model.modules()),
        )
    finally:
        model.train(was_training)
    new_ids: list[list[int]] = sequences[:, input_ids.shape[1] :].tolist()
    return new_ids


def _answer(ids: list[int], tokenizer: Any, stop: set[int]) -> Answer:
    end = next((index for index, token in enumerate(ids) if token in stop), None)
    text = decode_answer(ids if end is None else ids[:end], tokenizer)
    if end is None:
        return Answer(text, len(ids), "length")
    return Answer(text, end + 1, "stop")
