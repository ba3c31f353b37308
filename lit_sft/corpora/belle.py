r"""BELLE 0.5M (`Belle_open_source_0.5M.json`, BelleGroup/train_0.5M_CN): JSON Lines in spite of its suffix.

    {"instruction": "把下面的词翻译成英文：\n渡船\n", "input": "", "output": "\nferry"}

becomes user: 把下面的词翻译成英文：\n渡船, assistant: ferry. Sixty percent of the real prompts end in blanks, and many
answers begin with them: they are stripped at both ends and kept inside. `input` is empty in the released file;
where it is not, it follows the instruction on a new line. The other BELLE files:

    {"instruction": "Human:你好\nAssistant:你好！\nHuman:渡船几点开？\nAssistant:", "input": "", "output": "八点。"}
    {"input": "渡船几点开？", "target": "八点。"}
    {"id": "1", "conversations": [{"from": "human", "value": "渡船几点开？"}, {"from": "assistant", "value": "八点。"}]}

multi-turn chat (multiturn_chat_0.8M), the first upload of 0.5M, and train_3.5M_CN with `user` in place of `human` in
some derived files. generated_chat_0.4M stays what it is: a task, and a whole dialogue as its answer.

It reads the alpaca files of others as well (Stanford Alpaca, LLaMA-Factory): `response` is an answer where there is
no `output`, and `system` and `history` stand before the instruction:

    {"instruction": "末班呢？", "output": "六点。", "system": "你是小向导。", "history": [["渡船几点开？", "八点。"]]}
"""

from __future__ import annotations

import re
from typing import Any

from lit_sft.conversation import Conversation, Message, Role
from lit_sft.corpora._base import Corpus
from lit_sft.corpora._turns import (
    entries_of,
    first_text,
    in_order,
    messages_of,
    optional_text,
    said_before,
    single_turn,
    system_of,
    text_of,
)
from lit_sft.errors import BadRecord

ROLES: dict[str, Role] = {"human": "user", "user": "user", "assistant": "assistant"}

_SPEAKER = re.compile(r"(?:\A|\n)[ \t]*(Human|Assistant)[:：]")
"""Only at the beginning of a line: `Human:` inside a sentence is text."""


class Belle(Corpus):
    """Instructions and answers in the layouts of BELLE and alpaca."""

    layout = "one JSON object a line with the keys instruction, input, output (or input, target; or conversations)"
    layouts = (frozenset({"instruction", "output"}), frozenset({"target"}), frozenset({"conversations"}))

    def parse(self, record: dict[str, Any]) -> Conversation:
        """One question and one answer, or a talk."""
        if "conversations" in record:
            entries = entries_of(record, "conversations")
            return messages_of(entries, "from", "value", ROLES, before=system_of(record))
        prompt_key = "instruction" if "instruction" in record or "output" in record else "input"
        if prompt_key == "input":
            prompt, answer = text_of(record, "input", role="prompt"), text_of(record, "target", role="answer")
            return single_turn(record, prompt, answer)
        prompt = text_of(record, "instruction", role="prompt")
        answer = first_text(record, ("output", "response"), role="answer")
        extra = optional_text(record, "input", role="input")
        if prompt.startswith("Human:") and prompt.endswith("Assistant:"):
            return _talk(said_before(record), prompt, answer)
        return single_turn(record, f"{prompt}\n{extra}" if extra else prompt, answer)


def _talk(before: list[Message], history: str, answer: str) -> Conversation:
    """The turns of `Human:...Assistant:...Human:...Assistant:` and the answer to the last."""
    _, *parts = _SPEAKER.split(history)
    messages = list(before)
    for speaker, said in zip(parts[::2], [*parts[1:-1:2], answer], strict=True):
        if not said.strip():
            raise BadRecord("no-prompt" if speaker == "Human" else "no-answer")
        messages.append(Message("user" if speaker == "Human" else "assistant", said.strip()))
    return in_order(messages)
