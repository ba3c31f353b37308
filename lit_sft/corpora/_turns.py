"""From the fields of a record to messages in order; every refusal has a stable name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lit_sft.conversation import Conversation, Message, Role
from lit_sft.errors import BadRecord

SPEAKER_NAMES: dict[Role, str] = {"user": "prompt", "assistant": "answer", "system": "system"}
"""How the reasons call what a role says: `no-prompt`, `answer-not-text`."""


def text_of(record: Mapping[str, Any], key: str, *, role: str) -> str:
    """The text under `key` without blanks around it.

    Raises:
        BadRecord: `no-<role>` if it is missing, null, blank; `<role>-not-text` if it is no string.
    """
    value = record.get(key)
    if value is None:
        raise BadRecord(f"no-{role}")
    if not isinstance(value, str):
        raise BadRecord(f"{role}-not-text")
    text = value.strip()
    if not text:
        raise BadRecord(f"no-{role}")
    return text


def optional_text(record: Mapping[str, Any], key: str, *, role: str) -> str:
    """Like `text_of`, but "" where there is none."""
    value = record.get(key)
    return text_of(record, key, role=role) if value and (not isinstance(value, str) or value.strip()) else ""


def single_turn(prompt: str, answer: str) -> Conversation:
    """A question and its answer."""
    return Conversation([Message("user", prompt), Message("assistant", answer)])


def entries_of(record: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The list of objects under `key`.

    Raises:
        BadRecord: `no-turns` if it is missing or empty, `turns-not-a-list`, `turn-not-an-object`.
    """
    entries = record.get(key)
    if entries is None or entries == []:
        raise BadRecord("no-turns")
    if not isinstance(entries, list):
        raise BadRecord("turns-not-a-list")
    if not all(isinstance(entry, dict) for entry in entries):
        raise BadRecord("turn-not-an-object")
    return entries


def messages_of(
    entries: Sequence[Mapping[str, Any]], role_key: str, text_key: str, roles: Mapping[str, Role]
) -> Conversation:
    """A conversation from entries that each name their speaker; an empty system message is left out.

    Raises:
        BadRecord: `unknown-role`, the reasons of `text_of`, and those of `in_order`.
    """
    messages = []
    for entry in entries:
        name = entry.get(role_key)
        role = roles.get(name) if isinstance(name, str) else None
        if role is None:
            raise BadRecord("unknown-role")
        if role == "system" and not optional_text(entry, text_key, role="system"):
            continue
        messages.append(Message(role, text_of(entry, text_key, role=SPEAKER_NAMES[role])))
    return in_order(messages)


def in_order(messages: Sequence[Message]) -> Conversation:
    """A conversation in which, after at most one system message, user and assistant take turns.

    Raises:
        BadRecord: `no-turns`, `roles-out-of-order`, or `no-last-answer` if the user speaks last.
    """
    spoken = messages[1:] if messages and messages[0].role == "system" else messages
    if not spoken:
        raise BadRecord("no-turns")
    for position, message in enumerate(spoken):
        if message.role != ("assistant" if position % 2 else "user"):
            raise BadRecord("roles-out-of-order")
    if spoken[-1].role == "user":
        raise BadRecord("no-last-answer")
    return Conversation(messages)
