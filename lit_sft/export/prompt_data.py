r"""A prompt format as data (`prompt.json`): what the keys mean, and how a conversation becomes ids by them.

The C++ runner reads the file alike (`cpp/src/prompt.cpp`); this reader proves at export that the file says what the
format of the family does. A prompt ends where the assistant must speak, unless the conversation ends with an answer.

Pieces, of which lists are made:

    {"id": 195}                             a token
    {"text": "Human: {asked}"}              a text with slots, encoded on its own; {{ and }} are braces
    {"text": ..., "without_first_id": true} without the first of its ids, a dummy prefix
    {"text": ..., "continues": true}        encoded behind the text before it, if that keeps its ids, else on its own
    {"joined": [...]}                       texts and tokens that are encoded in one go (MOSS)

Slots: content, name, thoughts, commands of a message; `line`, the content with a newline behind it unless it is empty
or has one; `stripped`, the content without blanks at its ends; in turns `n`, `system`, `asked`. `{name|None}` stands
for None where the slot is empty.

    unit            message: templates by role; turn: a question and its answer
    whole           all text between tokens is one text and encoded once
    start           before everything
    refuse          conversations that cannot be written, see CONDITIONS
    fit             most (tokens of a prompt), most_answered (with an answer behind it), drop (what is left out, the
                    oldest first: rounds: a user who speaks after somebody else begins one, and what is before the
                    first stays; user: every message of a user begins one; turns: question and answer), counts_speak,
                    cut_left (what is still too long loses its left end: all, or the history before `speak`)
    stop, closing   ids that end an answer; ids behind the last answer of a whole conversation

By message: system, user, assistant, tool; answered: an answer that ends the conversation, if written otherwise;
speak: where the assistant must speak, always_speak: behind an answer, too; default_system: unless there is a system
message (any), or the first is one (default_unless: first); needs_user: what is said before any user is left out; call:
an assistant message without content before one of a tool, no_results: what stands behind it where no tool spoke;
always_calls: an answer without results has both.

By turn: ask, ask_later (not the first), alone (the only one); answer, answered (the last); end: behind the last
question; first_number; system_end: each system message with it is `system`, else system messages of the first turn are
the first lines asked.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol

from lit_sft.conversation import Conversation, Message
from lit_sft.errors import BadRecord

VERSION = 1

SLOT = re.compile(r"\{\{|\}\}|\{(\w+)(?:\|([^{}]*))?\}")

CONDITIONS: dict[str, Callable[[list[str]], bool]] = {
    "tool-message": lambda roles: "tool" in roles,
    "system-message": lambda roles: "system" in roles,
    "system-message-not-first": lambda roles: "system" in roles[1:],
    "assistant-speaks-first": lambda roles: roles[0] == "assistant",
    "roles-not-alternating": lambda roles: not _alternate([role for role in roles if role != "system"]),
}
"""What `refuse` may name, of the roles of a conversation."""


class TextEncoder(Protocol):
    """How text becomes ids."""

    def encode(self, parts: Sequence[str | int]) -> list[int]:
        """Ids of texts and tokens in one go."""


class PromptData:
    """Writes prompts as a `prompt.json` says.

    Args:
        data: Its content.
        tokenizer: Encodes what people wrote: no text becomes a control token.
    """

    def __init__(self, data: dict[str, Any], tokenizer: TextEncoder) -> None:
        self.data = data
        self.tokenizer = tokenizer

    def encode(self, conversation: Conversation) -> list[int]:
        """Ids of a prompt, without as many of its oldest parts as needed.

        Raises:
            BadRecord: If the conversation cannot be written.
        """
        messages = list(conversation.messages)
        if all(message.role == "system" for message in messages):
            raise BadRecord("nothing-to-answer")
        roles: list[str] = [message.role for message in messages]
        for condition in self.data.get("refuse", []):
            if CONDITIONS[condition](roles):
                raise BadRecord(condition)
        fit = self.data["fit"]
        kept, parts = self._parts(messages)
        is_answered = roles[-1] == "assistant"
        most = fit.get("most_answered", fit["most"]) if is_answered else fit["most"]

        def written(dropped: int) -> tuple[list[int], list[int]]:
            return self._written(kept, parts[dropped:])

        def fits(dropped: int) -> bool:
            ids, speak = written(dropped)
            return bool(len(ids) + (len(speak) if fit.get("counts_speak", True) else 0) <= most)

        dropped = 0 if fits(0) else bisect_left(range(max(0, len(parts) - 1)), True, key=fits)
        ids, speak = written(dropped)
        if fit.get("cut_left") == "history":
            ids = ids[-most:]
        return (ids + speak)[-most:] if fit.get("cut_left") == "all" else ids + speak

    def _parts(self, messages: list[Message]) -> tuple[list[Message], list[list[Message]]]:
        """What stays in any case, and what may be left out, the oldest first."""
        drop = self.data["fit"]["drop"]
        if drop == "turns":
            asked, *others = ([*read, *([answer] if answer else [])] for read, answer in Conversation(messages).turns())
            system = [message for message in asked if message.role == "system"]
            return system, [[message for message in asked if message.role != "system"], *others]
        if drop == "rounds":
            starts = [
                i for i, m in enumerate(messages) if m.role == "user" and (not i or messages[i - 1].role != "user")
            ]
            first = starts[0] if starts else len(messages)
        else:
            first = int(messages[0].role == "system")
            starts = [i for i in range(first, len(messages)) if i == first or messages[i].role == "user"]
            if self.data.get("needs_user") and starts and messages[first].role != "user":
                starts = starts[1:]
        return messages[:first], [messages[start:end] for start, end in pairwise([*starts, len(messages)])]

    def _written(self, kept: list[Message], parts: list[list[Message]]) -> tuple[list[int], list[int]]:
        """Ids, and those that let the assistant speak."""
        writer = _Writer(self.tokenizer, self.data.get("whole", False))
        writer.write(self.data.get("start", []), {})
        messages = [*kept, *(message for part in parts for message in part)]
        if self.data["unit"] == "turn":
            self._write_turns(messages, writer)
            return writer.end(), []
        return self._write_messages(messages, writer)

    def _write_messages(self, messages: list[Message], writer: _Writer) -> tuple[list[int], list[int]]:
        data = self.data
        looked_at = messages[:1] if data.get("default_unless") == "first" else messages
        if "default_system" in data and all(message.role != "system" for message in looked_at):
            messages = [Message("system", data["default_system"]), *messages]
        has_results = False
        for position, message in enumerate(messages):
            following = messages[position + 1].role if position + 1 < len(messages) else None
            slots = _slots(message)
            if message.role != "assistant":
                writer.write(data[message.role], slots)
                has_results = has_results or message.role == "tool"
            elif "call" in data and not message.content and following == "tool":
                writer.write(data["call"], slots)
            else:
                is_called = data.get("always_calls") or message.thoughts or message.commands
                if "call" in data and not has_results and is_called:
                    writer.write([*data["call"], *data["no_results"]], slots)
                writer.write(data["assistant"] if following else data.get("answered", data["assistant"]), slots)
                has_results = False
        is_asked = not messages or messages[-1].role != "assistant"
        # Formats of whole texts do not count these apart.
        length = len(writer.ids)
        if data.get("always_speak") or (is_asked and (has_results or not data.get("always_calls"))):
            writer.write(data["speak"], {})
        ids = writer.end()
        return ids[:length], ids[length:]

    def _write_turns(self, messages: list[Message], writer: _Writer) -> None:
        data = self.data
        turns = Conversation(messages).turns()
        for index, (read, answer) in enumerate(turns):
            is_last = index == len(turns) - 1
            slots = {"n": str(data.get("first_number", 1) + index), **self._asked(read)}
            name = "alone" if "alone" in data and len(turns) == 1 else "ask_later" if index else "ask"
            writer.write(data.get(name, data["ask"]), slots)
            if is_last:
                writer.end()
                writer.write(data.get("end", []), {})
            if answer is not None:
                writer.write(data.get("answered", data["answer"]) if is_last else data["answer"], _slots(answer))

    def _asked(self, read: list[Message]) -> dict[str, str]:
        end = self.data.get("system_end")
        if end is None:
            return {"system": "", "asked": "\n".join(message.content for message in read)}
        return {
            "system": "".join(message.content + end for message in read if message.role == "system"),
            "asked": "\n".join(message.content for message in read if message.role != "system"),
        }


class _Writer:
    """Ids so far, and text that is not encoded yet."""

    def __init__(self, tokenizer: TextEncoder, whole: bool) -> None:
        self.ids: list[int] = []
        self._tokenizer = tokenizer
        self._whole = whole
        self._text = ""
        self._encoded = ""  # text behind the last token

    def write(self, pieces: Sequence[dict[str, Any]], slots: dict[str, str]) -> None:
        for piece in pieces:
            if "id" in piece:
                self.end()
                self.ids.append(piece["id"])
                self._encoded = ""
            elif "joined" in piece:
                self.end()
                parts = [part["id"] if "id" in part else fill(part["text"], slots) for part in piece["joined"]]
                self.ids += self._tokenizer.encode(parts)
            else:
                self._write_text(piece, fill(piece["text"], slots))

    def _write_text(self, piece: dict[str, Any], text: str) -> None:
        if piece.get("continues"):
            self.end()
            before, after = (self._tokenizer.encode([part]) for part in (self._encoded, self._encoded + text))
            keeps = after[: len(before)] == before
            self.ids += after[len(before) :] if keeps else self._tokenizer.encode([text])
            self._encoded += text
        elif self._whole:
            self._text += text
        else:
            self.ids += self._tokenizer.encode([text])[piece.get("without_first_id", False) :]

    def end(self) -> list[int]:
        """Encode what is left."""
        if self._text:
            self.ids += self._tokenizer.encode([self._text])
            self._encoded += self._text
            self._text = ""
        return self.ids


def fill(template: str, slots: dict[str, str]) -> str:
    """A template with its slots filled in."""

    def value(found: re.Match[str]) -> str:
        if found[1] is None:
            return found[0][0]
        return slots[found[1]] or found[2] or ""

    return SLOT.sub(value, template)


def _slots(message: Message) -> dict[str, str]:
    content = message.content
    line = content if content.endswith("\n") or not content else f"{content}\n"
    return {
        "content": content,
        "line": line,
        "stripped": content.strip(),
        "name": message.name,
        "thoughts": message.thoughts,
        "commands": message.commands,
    }


def _alternate(roles: list[str]) -> bool:
    return all(role == ("assistant" if index % 2 else "user") for index, role in enumerate(roles))
