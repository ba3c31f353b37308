r"""Instructions and answers as Stanford Alpaca and LLaMA-Factory have them, or in columns of other names.

    {"instruction": "把这个词翻译成英文：", "input": "渡船", "output": "ferry"}

becomes user: 把这个词翻译成英文：\n渡船, assistant: ferry. `system` and `history`, pairs of what was said before,
stand before the instruction:

    {"instruction": "末班呢？", "output": "六点。", "system": "你是小向导。", "history": [["渡船几点开？", "八点。"]]}

A table whose columns are called otherwise is read by naming them, `columns: {instruction: 问题, output: 回答}`:

    {"问题": "渡船几点开？", "回答": "八点。"}
"""

from __future__ import annotations

from typing import Any

from lit_sft.conversation import Conversation
from lit_sft.corpora._base import Corpus
from lit_sft.corpora._turns import optional_text, single_turn, text_of
from lit_sft.errors import ConfigError, accepted

PARTS = ("instruction", "input", "output", "system", "history")


class Alpaca(Corpus):
    """Instructions and answers, in columns of any name.

    Args:
        path: Records with the keys instruction and output, and perhaps input, system, history.
        columns: For each of these what its column is called in the file, where that is something else.
        kwargs: What every corpus takes.
    """

    layout = "one JSON object a line with the keys instruction and output, or those that `columns` names"
    layouts = (frozenset({"instruction", "output"}),)

    def __init__(self, path: str | list[str], columns: dict[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(path, **kwargs)
        columns = columns or {}
        for part in columns:
            if part not in PARTS:
                raise ConfigError(f"columns of {path}: there is no part {part!r}. {accepted(part, PARTS)}")
        self.columns = {part: columns.get(part, part) for part in PARTS}
        twice = sorted({name for name in self.columns.values() if [*self.columns.values()].count(name) > 1})
        if twice:
            raise ConfigError(f"columns of {path}: {twice[0]} is named for two parts")

    @property
    def record_keys(self) -> frozenset[str]:
        """The columns of instruction and answer."""
        return frozenset({self.columns["instruction"], self.columns["output"]})

    def layout_of(self, record: dict[str, Any]) -> frozenset[str] | None:
        """By the columns, whatever they are called."""
        return None if self.record_keys.isdisjoint(record) else self.layouts[0]

    def parse(self, record: dict[str, Any]) -> Conversation:
        """One question and one answer, behind what was said before."""
        parts = {part: record[column] for part, column in self.columns.items() if column in record}
        prompt = text_of(parts, "instruction", role="prompt")
        extra = optional_text(parts, "input", role="input")
        answer = text_of(parts, "output", role="answer")
        return single_turn(parts, f"{prompt}\n{extra}" if extra else prompt, answer)
