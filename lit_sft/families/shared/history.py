"""What is left out of a conversation that is longer than the context."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lit_sft.conversation import Conversation, Message


def truncate_history(
    conversation: Conversation,
    encode_prompt: Callable[[Conversation, Any], list[int]],
    tokenizer: Any,
    context_length: int,
) -> list[int]:
    """Ids of the prompt without as many of its oldest rounds as needed to leave room for an answer.

    System messages at the beginning stay. The last round stays too, so the ids may still be too many.
    """

    def encode(dropped: int) -> list[int]:
        return encode_prompt(_without_rounds(conversation, dropped), tokenizer)

    ids = encode(0)
    if len(ids) < context_length:
        return ids
    num_droppable = len(_round_starts(conversation.messages)) - 1
    return encode(bisect_left(range(num_droppable), True, key=lambda dropped: len(encode(dropped)) < context_length))


def _round_starts(messages: Sequence[Message]) -> list[int]:
    """Where a user speaks first or after the assistant; tool calls and their results stay in the round."""
    return [
        index
        for index, message in enumerate(messages)
        if message.role == "user" and (index == 0 or messages[index - 1].role != "user")
    ]


def _without_rounds(conversation: Conversation, num_rounds: int) -> Conversation:
    if not num_rounds:
        return conversation
    messages = conversation.messages
    starts = _round_starts(messages)
    return replace(conversation, messages=[*messages[: starts[0]], *messages[starts[num_rounds] :]])
