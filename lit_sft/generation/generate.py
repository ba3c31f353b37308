"""Batched answers from any causal LM of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.distributed.fsdp import FSDPModule

from lit_sft.generation.strategies import UNSAMPLED, Strategy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FinishReason = Literal["stop", "length", "prompt-too-long"]

TOKEN_BUDGET = 8192
"""Tokens in memory at once; the cache of Baichuan-13B takes 6.7 GB for them in half precision."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the network said.

    `num_tokens` counts the end-of-turn token too. `finish_reason`: `stop`: the network ended its turn; `length`: it
    was cut at max_new_tokens or at the end of the context; `prompt-too-long`: the prompt left no room to answer.
    """

    text: str
    num_tokens: int
    finish_reason: FinishReason


def batches_by_length(
    lengths: Sequence[int],
    strategies: Sequence[Strategy],
    *,
    context_length: int,
    token_budget: int | None = None,
) -> list[list[int]]:
    """Indices of prompts to answer together, the longest first: what does not fit into memory shows at once.

    Args:
        lengths: Tokens of each prompt.
        strategies: Say how many tokens an answer has at most, and how many are followed at once.
        context_length: Tokens of prompt and answer together at most.
        token_budget: Tokens of prompts, padding and whole answers in a batch, unless it is of one prompt; no limit if
            not given.
    """
    batches: list[list[int]] = []
    rooms: list[int] = []  # of each answer to the prompts of the last batch
    most = 0  # prompts in it
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        room = [max(0, min(strategy.max_new_tokens, context_length - lengths[index])) for strategy in strategies]
        # An answer may depend on how long it can become (beams), so those of a batch end alike.
        if not batches or room != rooms or len(batches[-1]) == most:
            tokens = [(lengths[index] + n) * each.num_beams for n, each in zip(room, strategies, strict=True)]
            rooms, most = room, max(1, token_budget // max(tokens)) if token_budget else len(lengths)
            batches.append([])
        batches[-1].append(index)
    return batches


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
        prompts: Ids of each prompt, which are answered at once unless the end of the context comes near.
        strategy: How tokens are chosen.
        stop_token_ids: Tokens that end an answer.
        context_length: Tokens of prompt and answer together at most.
        streamer: Of transformers; receives the tokens of a single prompt as they are chosen, not from beam search.
    """
    stop = list(stop_token_ids)
    answers: dict[int, Answer] = {}
    for rows in batches_by_length([len(prompt) for prompt in prompts], [strategy], context_length=context_length):
        room = min(strategy.max_new_tokens, context_length - len(prompts[rows[0]]))
        if room < 1:
            answers |= dict.fromkeys(rows, Answer("", 0, "prompt-too-long"))
            continue
        new_ids = generate_ids(model, [prompts[row] for row in rows], strategy, stop=stop, room=room, streamer=streamer)
        answers |= {row: _answer(ids, tokenizer, set(stop)) for row, ids in zip(rows, new_ids, strict=True)}
    return [answers[row] for row in range(len(prompts))]


def decode_answer(ids: Sequence[int], tokenizer: Any) -> str:
    """The text of an answer, without control tokens; bytes that are not a whole character become U+FFFD."""
    # Some original tokenizers "clean up" blanks before punctuation, which damages text and above all code.
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.strip()


@torch.no_grad()  # not inference_mode: what is gathered of sharded weights must serve training too
def generate_ids(
    model: Any, prompts: list[Sequence[int]], strategy: Strategy, *, stop: list[int], room: int, streamer: Any = None
) -> list[list[int]]:
    """New ids of each prompt, `room` at most, padded with the first stop token."""
    from transformers import GenerationConfig, LogitsProcessorList

    # Padding with the stop token is safe: an answer is read up to the first.
    input_ids, attention_mask = pad_left(prompts, pad_token_id=stop[0])
    padding = [input_ids.shape[1] - len(prompt) for prompt in prompts]
    # What looks at tokens or draws them is ours, by the row.
    own = {**UNSAMPLED, "max_new_tokens": room, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    was_training = model.training
    model.eval()
    try:
        sequences: torch.Tensor = model.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            generation_config=GenerationConfig(
                **{**strategy.options(), **own}, eos_token_id=stop, pad_token_id=stop[0]
            ),
            logits_processor=LogitsProcessorList(strategy.processors(padding, prompts)),
            streamer=streamer,
            # Where weights are sharded, every process goes on until the last has its answer.
            synced_gpus=any(isinstance(module, FSDPModule) for module in model.modules()),
        )
    finally:
        model.train(was_training)
    new_ids: list[list[int]] = sequences[:, input_ids.shape[1] :].tolist()
    return new_ids


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`input_ids` and `attention_mask` [B, T], every row ending at the right edge, where generation goes on."""
    length = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), length), pad_token_id)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for index, row in enumerate(rows):
        input_ids[index, length - len(row) :] = torch.tensor(row)
        attention_mask[index, length - len(row) :] = 1
    return input_ids, attention_mask


def _answer(ids: list[int], tokenizer: Any, stop: set[int]) -> Answer:
    end = next((index for index, token in enumerate(ids) if token in stop), None)
    text = decode_answer(ids if end is None else ids[:end], tokenizer)
    if end is None:
        return Answer(text, len(ids), "length")
    return Answer(text, end + 1, "stop")
