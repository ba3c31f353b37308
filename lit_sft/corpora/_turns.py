"""From the fields of a record to messages in order; every refusal has a stable name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lit_sft.conversation import Conversation, Message, Role
from lit_sft.corpora._fields import LOSS_KEYS, is_blank, is_filled, is_supervised
from lit_sft.errors import BadRecord

SYSTEM_KEYS = ("system", "system_prompt")

CHAT_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""Of OpenAI and of ShareGPT."""

SPEAKER_NAMES: dict[Role, str] = {"user": "prompt", "assistant": "answer", "system": "system"}
"""How the reasons call what a role says: `no-prompt`, `answer-not-text`."""


def text_of(record: Mapping[str, Any], key: str, *, role: str) -> str:
    """The text under `key` without blanks around it.

    Raises:
        BadRecord: `no-<role>` if it is missing, null, blank; `<role>-not-text` if it is not a string.
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
    """Like `text_of`, but "" where there is none; a number is not a text, 0 neither."""
    return "" if is_blank(record.get(key)) else text_of(record, key, role=role)


def first_text(record: dict[str, Any], keys: Sequence[str], *, role: str) -> str:
    """Like `text_of`, under the first of these keys that is filled."""
    return text_of(record, next((key for key in keys if is_filled(record, key)), keys[0]), role=role)


def single_turn(record: dict[str, Any], prompt: str, answer: str) -> Conversation:
    """A question and its answer, behind the system message and the earlier rounds of the record."""
    return in_order([*said_before(record), Message("user", prompt), Message("assistant", answer)])


def said_before(record: dict[str, Any]) -> list[Message]:
    """The system message and the `history` of a record, as LLaMA-Factory's alpaca files have them.

    A round of a history is a pair of texts, or two objects with role and content.

    Raises:
        BadRecord: `history-not-rounds`, and the reasons of `text_of` and `messages_of`.
    """
    system = system_of(record)
    if not is_filled(record, "history"):
        return system
    history = record["history"]
    if not isinstance(history, list):
        raise BadRecord("history-not-rounds")
    if all(isinstance(entry, dict) for entry in history):
        return [*system, *messages_of(history, "role", "content", CHAT_ROLES).messages]
    for pair in history:
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRecord("history-not-rounds")
        asked, answer = ({"text": text} for text in pair)
        system.append(Message("user", text_of(asked, "text", role="prompt")))
        system.append(Message("assistant", text_of(answer, "text", role="answer")))
    return system


def system_of(record: dict[str, Any], keys: Sequence[str] = SYSTEM_KEYS) -> list[Message]:
    """The system message that stands beside the conversation, if there is one."""
    filled = [key for key in keys if is_filled(record, key)]
    return [Message("system", text_of(record, filled[0], role="system"))] if filled else []


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


def utterances_of(record: Mapping[str, Any], key: str, role: str) -> list[Message]:
    """The list of texts under `key`, of user and assistant in turns.

    Args:
        record: Where it stands.
        key: Under which key.
        role: How reasons call the list and the last of its texts.

    Raises:
        BadRecord: `no-<role>`, `<role>-not-a-list`, and the reasons of `text_of`.
    """
    texts = record.get(key)
    if texts is None or texts == []:
        raise BadRecord(f"no-{role}")
    if not isinstance(texts, list):
        raise BadRecord(f"{role}-not-a-list")
    messages = []
    for place, text in enumerate(texts, start=1):
        speaker: Role = "user" if place % 2 else "assistant"
        name = role if place == len(texts) else SPEAKER_NAMES[speaker]
        messages.append(Message(speaker, text_of({"text": text}, "text", role=name)))
    return messages


def messages_of(
    entries: Sequence[dict[str, Any]],
    role_key: str,
    text_key: str,
    roles: Mapping[str, Role],
    *,
    before: Sequence[Message] = (),
    is_prompt: bool = False,
) -> Conversation:
    """A conversation from entries that each name their speaker; an empty system message is left out.

    Args:
        entries: What was said. An answer with `loss: false`, `weight: 0` or `train: false` carries no loss.
        role_key: Where the speaker stands.
        text_key: Where the text stands.
        roles: What the speakers are called.
        before: Messages that come first.
        is_prompt: Whether the user may speak last.

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
        text = text_of(entry, text_key, role=SPEAKER_NAMES[role])
        messages.append(Message(role, text, is_supervised=_is_supervised(role, entry)))
    return in_order([*before, *messages], is_prompt=is_prompt)


def _is_supervised(role: Role, entry: dict[str, Any]) -> bool:
    """What is said of an answer; that others carry no loss goes without saying, the contrary stays unread."""
    if role == "assistant":
        return is_supervised(entry)
    if not any(dict.get(entry, key) for key in LOSS_KEYS):
        is_supervised(entry)
    return True


def in_order(messages: Sequence[Message], *, is_prompt: bool = False) -> Conversation:
    """A conversation in which, after at most one system message, user and assistant take turns.

    Raises:
        BadRecord: `no-turns`, `roles-out-of-order`, or `no-last-answer` if the user speaks last
            and it is not a prompt; `no-supervised-answer` if every answer is marked as without loss.
    """
    spoken = messages[1:] if messages and messages[0].role == "system" else messages
    if not spoken:
        raise BadRecord("no-turns")
    for position, message in enumerate(spoken):
        if message.role != ("assistant" if position % 2 else "user"):
            raise BadRecord("roles-out-of-order")
    if spoken[-1].role == "user" and not is_prompt:
        raise BadRecord("no-last-answer")
    if not is_prompt and not any(message.is_supervised for message in spoken[1::2]):
        raise BadRecord("no-supervised-answer")
    return Conversation(messages)
