"""Random texts and conversations, the same at every export, through Python and through the exported data."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from lit_sft.conversation import Conversation, Message, PromptFormat, Role
from lit_sft.errors import BadRecord, UserError
from lit_sft.export.prompt_data import PromptData
from lit_sft.export.tokenizer_data import DataTokenizer

FRAGMENTS = (
    *(
        "你好",
        "世界",
        "，",
        "。",
        "中文 English",
        "贝壳镇",
        "café",
        "Ünïcödé",
        "こんにちは",
        "안녕",
        "مرحبا",
        "𠮷",
        "🙂",
    ),
    *(
        "a",
        "Hello",
        "world",
        "don't",
        "I'll",
        "'s",
        "1234567890",
        "3.14",
        "½",
        "Ⅷ",
        "x = y[0]",
        "...",
        "--",
        "{content}",
    ),
    *("def f():\n    return 1", "}}", "Human: ", "[Round 1]", "▁", "<0x0A>", "<n>", "<|tab|>", "<|blank_5|>", "\ufffd"),
    *(" ", "  ", "   ", " " * 9, " " * 31, " " * 85, "\t", "\t\t", "\n", "\n\n", "\r\n", "\u3000", "\x85", "\x1c"),
    *("\u00a0", "\u200b", "\x00", "\ufeff", "</s>", "<s>", "<unk>", "<reserved_102>", "<reserved_106>", "<eop>"),
    *("<sop>", "[gMASK]", "<eom>", "<eoh>", "<|endoftext|>", "<|user|>", "<|im_start|>", "<|im_end|>"),
)
"""Texts that tokenizers treat differently."""

UNICODE_BLOCKS = ((0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x5FF), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF))


class DifferentIdsError(UserError):
    """A text or conversation has other ids by the data; `has_tool` says whether a tool speaks in it."""

    def __init__(self, message: str, *, has_tool: bool = False) -> None:
        super().__init__(message)
        self.has_tool = has_tool


def random_text(chance: random.Random, longest: int = 8) -> str:
    """A text of fragments and of random characters."""
    parts = []
    for _ in range(chance.randint(0, longest)):
        if chance.random() < 0.7:
            parts.append(chance.choice(FRAGMENTS))
        else:
            first, last = chance.choice(UNICODE_BLOCKS)
            parts.append("".join(chr(chance.randint(first, last)) for _ in range(chance.randint(1, 6))))
    return "".join(parts)


def random_conversation(chance: random.Random, *, has_tools: bool = True) -> Conversation:
    """Any order of roles, most of them sensible; some are far too long."""
    messages: list[Message] = []
    if chance.random() < 0.4:
        messages.append(Message("system", random_text(chance)))
    has_tools = has_tools and chance.random() < 0.3
    is_long = chance.random() < 0.3
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        messages += _round(chance, has_tools=has_tools, repeats=chance.choice((1, 8, 40)) if is_long else 1)
    if messages[-1].role != "user" and chance.random() < 0.7:
        messages.append(Message("user", random_text(chance)))
    return Conversation(messages)


def _round(chance: random.Random, *, has_tools: bool, repeats: int) -> list[Message]:
    def said(role: Role, thoughts: str = "", name: str = "") -> Message:
        return Message(role, random_text(chance, longest=4) * repeats, thoughts, name=name)

    messages = []
    if chance.random() < 0.95:
        messages.append(said("user"))
    if chance.random() < 0.1:
        messages.append(said("user"))
    if chance.random() < 0.03:
        messages.append(said("system"))
    if has_tools and chance.random() < 0.2:
        messages.append(Message("assistant", "", random_text(chance), random_text(chance)))
        messages += [said("tool") for _ in range(chance.choice((1, 1, 2)))]
    if not messages or chance.random() < 0.9:
        thoughts = random_text(chance) if has_tools and chance.random() < 0.1 else ""
        name = "search" if has_tools and chance.random() < 0.1 else ""
        messages.append(said("assistant", thoughts=thoughts, name=name))
    return messages


def prove_tokenizer(reader: DataTokenizer, tokenizer: Any, number: int) -> int:
    """Compare the ids of random texts.

    Returns:
        Their number.

    Raises:
        DifferentIdsError: If one differs.
    """
    chance = random.Random(f"texts {number}")  # noqa: S311 - the same texts at every export
    for _ in range(number):
        text = random_text(chance)
        expected, found = list(tokenizer.encode_text(text)), reader.encode([text])
        if found != expected:
            raise DifferentIdsError(
                f"the exported tokenizer writes {text!r} as {found}, the original as {expected}; please report it"
            )
    return number


def prove_prompts(
    data: PromptData, prompt_format: PromptFormat, tokenizer: Any, number: int, *, has_tools: bool = True
) -> dict[str, int]:
    """Compare the ids of prompts of random conversations.

    Returns:
        How many were equal, how many of these left a part of the conversation out, and how many were refused alike.

    Raises:
        DifferentIdsError: If one differs.
    """
    chance = random.Random(f"conversations {number}")  # noqa: S311
    counts = Counter({"equal": 0, "shortened": 0, "refused": 0})
    for _ in range(number):
        conversation = random_conversation(chance, has_tools=has_tools)
        expected, found = _ids(prompt_format, conversation, tokenizer), _ids(data, conversation)
        if found != expected:
            said = [(message.role, message.content[:40]) for message in conversation.messages]
            raise DifferentIdsError(
                f"by its data, {type(prompt_format).__name__} writes a conversation otherwise: {said}",
                has_tool=any(message.role == "tool" for message in conversation.messages),
            )
        counts["equal" if expected is not None else "refused"] += 1
        if expected is not None and len(expected) < len(prompt_format.whole_prompt(conversation, tokenizer)):
            counts["shortened"] += 1
    return dict(counts)


def _ids(writer: Any, conversation: Conversation, *tokenizer: Any) -> list[int] | None:
    """Ids of a prompt; None if it cannot be written."""
    try:
        prompt = writer.encode_prompt(conversation, *tokenizer) if tokenizer else writer.encode(conversation)
    except BadRecord:
        return None
    return [int(index) for index in prompt]
