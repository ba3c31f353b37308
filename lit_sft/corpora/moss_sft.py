r"""MOSS-003-sft: conversations with and without tools, in two layouts.

fnlp published it as `moss-003-sft-no-tools.jsonl` and `moss-003-sft-with-tools-no-text2image.jsonl`:

    {"conversation_id": "1", "meta_instruction": "你是小向导。\n", "num_turns": 1, "category": "Others",
     "chat": {"turn_1": {"Human": "<|Human|>: 渡船几点开？<eoh>\n",
                         "Inner Thoughts": "<|Inner Thoughts|>: 要查时刻表<eot>\n",
                         "Commands": "<|Commands|>: Search(\"渡船 时刻\")<eoc>\n",
                         "Tool Responses": "<|Results|>:\nSearch(\"渡船 时刻\") => 八点\n<eor>\n",
                         "MOSS": "<|MOSS|>: 八点。<eom>\n"}}}

becomes system: 你是小向导。, user: 渡船几点开？, assistant with thoughts, commands and no content, tool:
Search(...) => 八点, assistant: 八点。; without a tool (all three are ` None`) user and assistant. YeungNLP published it
as `moss-003-sft-data.jsonl`, without tools and marks:

    {"conversation_id": 1, "category": "Others", "conversation": [{"human": "渡船几点开？", "assistant": "八点。"}]}

becomes user, assistant. Only the marks around a field are taken off; any inside it are text.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from lit_sft.conversation import Conversation, Message
from lit_sft.corpora._base import Corpus
from lit_sft.corpora._fields import is_supervised
from lit_sft.corpora._turns import SYSTEM_KEYS, entries_of, optional_text, system_of, text_of
from lit_sft.errors import BadRecord

MARKS = {
    "Human": ("<|Human|>:", "<eoh>"),
    "Inner Thoughts": ("<|Inner Thoughts|>:", "<eot>"),
    "Commands": ("<|Commands|>:", "<eoc>"),
    "Tool Responses": ("<|Results|>:", "<eor>"),
    "MOSS": ("<|MOSS|>:", "<eom>"),
}
CALL = ("Inner Thoughts", "Commands", "Tool Responses")
NO_RESULTS = "<|Results|>: None<eor>"

_TURN = re.compile(r"turn_([0-9]{1,4})")


class MossSft(Corpus):
    """Conversations in the two layouts of MOSS-003-sft.

    Args:
        path: Records with the keys meta_instruction, chat, category; or conversation, category.
        categories: Only these categories, for example Brainstorming, Code, Harmless; all if not given.
        tools: `drop` leaves thoughts, commands and results out, for models that know no tools: only the answer stays.
        kwargs: What every corpus takes.
    """

    layout = "one JSON object a line with the keys chat, meta_instruction (fnlp) or conversation (YeungNLP)"
    layouts = (frozenset({"chat"}), frozenset({"conversation"}))
    group_key = "category"

    def __init__(
        self,
        path: str | list[str],
        categories: list[str] | None = None,
        tools: Literal["keep", "drop"] = "keep",
        **kwargs: Any,
    ) -> None:
        super().__init__(path, **kwargs)
        self.groups = categories
        self.tools = tools

    def parse(self, record: dict[str, Any]) -> Conversation:
        """All turns, with the meta instruction as system message where there is one."""
        messages = system_of(record, ("meta_instruction", *SYSTEM_KEYS))
        if "chat" in record:
            for turn in _turns(record["chat"]):
                messages += self._messages(turn)
        else:
            for entry in entries_of(record, "conversation"):
                messages.append(Message("user", text_of(entry, "human", role="prompt")))
                text = text_of(entry, "assistant", role="answer")
                messages.append(Message("assistant", text, is_supervised=is_supervised(entry)))
        if not any(message.is_supervised for message in messages if message.role == "assistant"):
            raise BadRecord("no-supervised-answer")
        return Conversation(messages)

    def _messages(self, turn: dict[str, Any]) -> list[Message]:
        user = Message("user", _field(turn, "Human", role="prompt"))
        answer = Message("assistant", _field(turn, "MOSS", role="answer"), is_supervised=is_supervised(turn))
        for name, role in zip(reversed(CALL), ("result", "call", "call"), strict=True):
            # Thoughts without a result are not written: they count as a key that is not used.
            if self.tools == "drop" or optional_text(dict(turn), name, role=role) in _without(name):
                turn.get(name)
        if self.tools == "drop" or optional_text(turn, "Tool Responses", role="result") in {"", NO_RESULTS}:
            return [user, answer]
        thoughts, commands, results = (_field(turn, name, role="call") for name in CALL)
        # An asked tool may have found "None", on a line of its own: that is a result. Thoughts and commands are not.
        thoughts, commands = ("" if text == "None" else text for text in (thoughts, commands))
        call = Message("assistant", "", thoughts, commands)
        return [user, call, Message("tool", results), answer]


def _turns(chat: Any) -> list[dict[str, Any]]:
    """The turns by their number: as texts, turn_10 would stand before turn_2."""
    if not isinstance(chat, dict):
        raise BadRecord("turns-not-an-object")
    if not chat:
        raise BadRecord("no-turns")
    turns: dict[int, dict[str, Any]] = {}
    for name in chat:
        turn = chat[name]
        if not isinstance(turn, dict):
            raise BadRecord("turn-not-an-object")
        match = _TURN.fullmatch(name)
        if not match:
            raise BadRecord("turns-misnumbered")
        turns[int(match[1])] = turn
    if sorted(turns) != list(range(1, len(chat) + 1)):
        raise BadRecord("turns-misnumbered")
    return [turns[number] for number in sorted(turns)]


def _without(name: str) -> set[str]:
    """How a turn without this field writes it."""
    start, end = MARKS[name]
    return {"", "None", f"{start} None{end}"}


def _field(turn: dict[str, Any], name: str, *, role: str) -> str:
    """The text of a field without the marks around it."""
    start, end = MARKS[name]
    text = text_of(turn, name, role=role).removeprefix(start).removesuffix(end)
    return text_of({name: text}, name, role=role)
