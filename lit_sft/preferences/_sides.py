"""The prompt and the answer in a record, in the forms in which layouts write them: texts, messages, transcripts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lit_sft.conversation import Message
from lit_sft.corpora._turns import (
    CHAT_ROLES,
    entries_of,
    in_order,
    messages_of,
    optional_text,
    said_before,
    system_of,
    text_of,
)
from lit_sft.errors import BadRecord

_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant)[:：]")


def asked(messages: Sequence[Message]) -> Sequence[Message]:
    """These messages, if they are a prompt.

    Raises:
        BadRecord: `prompt-ends-with-answer`, and the reasons of `in_order`.
    """
    if messages and messages[-1].role == "assistant":
        raise BadRecord("prompt-ends-with-answer")
    return in_order(messages, is_prompt=True).messages


def prompt_of(record: dict[str, Any]) -> list[Message]:
    """The prompt of a record: a text, a transcript, or messages; the system message may stand beside it.

    Raises:
        BadRecord: `no-prompt`, `prompt-not-text`, and the reasons of `messages_of` and `asked`.
    """
    if isinstance(record.get("prompt"), list):
        entries = entries_of(record, "prompt")
        talk = messages_of(entries, "role", "content", CHAT_ROLES, before=system_of(record), is_prompt=True)
        return list(asked(talk.messages))
    text = text_of(record, "prompt", role="prompt")
    is_transcript = text.startswith("Human:") and text.endswith("\n\nAssistant:")
    turns = turns_of(text) if is_transcript else [Message("user", text)]
    return list(asked([*said_before(record), *turns]))


def instruction_of(record: dict[str, Any]) -> Sequence[Message]:
    """The prompt of an alpaca record: the instruction behind its history, the input on a new line where there is one.

    Raises:
        BadRecord: The reasons of `text_of` and `said_before`.
    """
    instruction, extra = text_of(record, "instruction", role="prompt"), optional_text(record, "input", role="input")
    return asked([*said_before(record), Message("user", f"{instruction}\n{extra}" if extra else instruction)])


def answer_of(record: dict[str, Any], key: str, role: str) -> str:
    """The answer under a key: a text, a message of the assistant, or a list with one.

    Args:
        record: Where it stands.
        key: Under which key.
        role: How reasons call it.

    Raises:
        BadRecord: `<role>-not-one-message`, `<role>-not-by-assistant`, and the reasons of `text_of`.
    """
    value = record.get(key)
    if isinstance(value, list) and value:
        if len(value) != 1 or not isinstance(value[0], dict):
            raise BadRecord(f"{role}-not-one-message")
        value = value[0]
    if not isinstance(value, dict):
        return text_of({key: None if value == [] else value}, key, role=role)
    role_key, text_key = ("from", "value") if "from" in value else ("role", "content")
    if CHAT_ROLES.get(str(value.get(role_key))) != "assistant":
        raise BadRecord(f"{role}-not-by-assistant")
    return text_of(value, text_key, role=role)


def split_off_answer(
    record: dict[str, Any], key: str, role: str, *, role_key: str = "role", text_key: str = "content"
) -> tuple[list[Message], str]:
    """The messages of the conversation under a key up to its last answer, and that answer.

    Args:
        record: Where it stands; its system message comes first.
        key: Under which key.
        role: How reasons call the answer.
        role_key: Where the speaker of a message stands.
        text_key: Where its text stands.

    Raises:
        BadRecord: `no-<role>` if the assistant does not speak last; the reasons of `entries_of` and `messages_of`.
    """
    entries, before = entries_of(record, key), system_of(record)
    *prompt, last = messages_of(entries, role_key, text_key, CHAT_ROLES, before=before, is_prompt=True).messages
    if last.role != "assistant":
        raise BadRecord(f"no-{role}")
    return prompt, last.content


def transcript_of(text: str, role: str) -> tuple[list[Message], str]:
    r"""The messages of `\n\nHuman: ...\n\nAssistant: ...` up to its last answer, and that answer.

    Raises:
        BadRecord: `no-<role>` if there is nothing behind the last `Assistant:`; `role-marker-in-answer` if somebody
            speaks behind it; the reasons of `turns_of`.
    """
    speakers = list(_SPEAKER.finditer(text))
    last = next((found for found in reversed(speakers) if found[1] == "Assistant"), None)
    if last is None:
        raise BadRecord("no-turns")
    if last is not speakers[-1]:
        raise BadRecord("role-marker-in-answer")
    answer = text[last.end() :].strip()
    if not answer:
        raise BadRecord(f"no-{role}")
    return turns_of(text[: last.start()]), answer


def turns_of(transcript: str) -> list[Message]:
    r"""The messages of a transcript that ends where the assistant must speak, with or without its `\n\nAssistant:`.

    Raises:
        BadRecord: `no-prompt` or `no-answer` for a turn without text, `text-before-first-turn`.
    """
    before, *parts = _SPEAKER.split(transcript)
    if before.strip():
        raise BadRecord("text-before-first-turn")
    if parts[-2:-1] == ["Assistant"] and not parts[-1].strip():
        del parts[-2:]
    messages = []
    for speaker, said in zip(parts[::2], parts[1::2], strict=True):
        if not said.strip():
            raise BadRecord("no-prompt" if speaker == "Human" else "no-answer")
        messages.append(Message("user" if speaker == "Human" else "assistant", said.strip()))
    return messages


def same_prompt(prompts: Sequence[Sequence[Message]]) -> Sequence[Message]:
    """The prompt that both sides have.

    Raises:
        BadRecord: `prompts-differ`, and the reasons of `asked`.
    """
    chosen, rejected = prompts
    if chosen != rejected:
        raise BadRecord("prompts-differ")
    return asked(chosen)
