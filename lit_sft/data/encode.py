"""Conversation -> Example: loss mask, and truncation by whole turns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal

from lit_sft.conversation import IGNORE_INDEX, Conversation, EncodedTurn, Example, Judged, PromptFormat, Record
from lit_sft.data.encoder import Encoding
from lit_sft.errors import BadRecord

LossOn = Literal["assistant", "last", "all"]
Truncation = Literal["", "turns-dropped", "reply-cut"]


@dataclass(frozen=True)
class ConversationEncoding(Encoding):
    """Conversations with the loss on what the assistant says; of ranked answers, the prompt with the best.

    Args:
        loss_on: Which tokens carry loss.
    """

    loss_on: LossOn

    def encode_record(self, record: Record) -> Example:
        """Ids and labels."""
        return encode_conversation(
            with_best_answer(record),
            self.prompt_format,
            self.tokenizer,
            max_length=self.max_length,
            loss_on=self.loss_on,
        )


def with_best_answer(record: Record) -> Conversation:
    """A conversation; of ranked answers the prompt with the best, of a judged one the prompt alone if it is bad."""
    best = record.conversations()[0]
    return best.prompt() if isinstance(record, Judged) and not record.is_good else best


def encode_conversation(
    conversation: Conversation,
    prompt_format: PromptFormat,
    tokenizer: Any,
    *,
    max_length: int,
    loss_on: LossOn = "assistant",
) -> Example:
    """Ids and labels of at most `max_length` tokens.

    Args:
        conversation: What was said; must hold an answer.
        prompt_format: The family's way to write it.
        tokenizer: The family's tokenizer.
        max_length: Tokens to keep. Turns that do not fit are dropped whole from the end; if the first alone is
            too long, its reply is cut and loses its end-of-turn token.
        loss_on: `assistant`: every answer with its end-of-turn token; `last`: only the last answer kept;
            `all`: prompts too.

    Raises:
        BadRecord: `prompt-too-long` if no token of an answer fits; `no-supervised-answer` if none that fits carries
            loss.
    """
    turns, truncation = _fit(prompt_format.encode_turns(conversation, tokenizer), max_length)
    if loss_on == "last":
        turns = [*(replace(turn, is_supervised=False) for turn in turns[:-1]), turns[-1]]
    if not any(turn.is_supervised for turn in turns):
        raise BadRecord("no-supervised-answer")
    input_ids: list[int] = []
    labels: list[int] = []
    for previous, turn in zip([None, *turns], turns, strict=False):
        input_ids += turn.prompt_ids + turn.reply_ids
        if loss_on == "all":
            labels += turn.prompt_ids
            labels += turn.reply_ids if turn.is_supervised else [IGNORE_INDEX] * len(turn.reply_ids)
        else:
            labels += turn.labels(previous=previous)
    closing = prompt_format.closing_ids(tokenizer)
    if truncation != "reply-cut" and len(input_ids) + len(closing) <= max_length:
        input_ids += closing
        labels += closing if turns[-1].is_supervised else [IGNORE_INDEX] * len(closing)
    return Example(input_ids, labels, conversation.source, truncation)


def _fit(turns: list[EncodedTurn], max_length: int) -> tuple[list[EncodedTurn], Truncation]:
    """The answered turns that fit, and what was done to the rest."""
    answered = [turn for turn in turns if turn.reply_ids]
    if not answered:
        raise BadRecord("no-answer")
    lengths = accumulate(len(turn.prompt_ids) + len(turn.reply_ids) for turn in answered)
    num_fitting = sum(length <= max_length for length in lengths)
    if num_fitting == len(answered):
        return answered, ""
    if num_fitting:
        return answered[:num_fitting], "turns-dropped"
    first = answered[0]
    room = max_length - len(first.prompt_ids)
    if room <= 0:
        raise BadRecord("prompt-too-long")
    return [replace(first, reply_ids=first.reply_ids[:room])], "reply-cut"
