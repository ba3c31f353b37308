"""Alpaca records with several outputs, the best first (`oaast_rm_zh.json`, `comparison_gpt4_data_zh.json`).

    {"instruction": "渡船几点开？", "input": "", "output": ["八点。", "早上。", "自己看。"],
     "history": [["你好", "你好！"]]}

becomes user: 你好, assistant: 你好！, user: 渡船几点开？ with three ranked answers. `input`, where it is filled,
follows the instruction on a new line. Equal outputs side by side are one.
"""

from __future__ import annotations

from typing import Any

from lit_sft.conversation import Preference
from lit_sft.corpora._turns import text_of
from lit_sft.errors import BadRecord
from lit_sft.preferences._base import PreferenceCorpus
from lit_sft.preferences._sides import instruction_of


class RankedOutputs(PreferenceCorpus):
    """Instructions with a list of outputs, the best first."""

    layout = "objects with the keys instruction, input, output (a list of texts, the best first), history"
    layouts = (frozenset({"instruction", "output"}),)

    def parse(self, record: dict[str, Any]) -> Preference:
        """The instruction behind its history is the prompt."""
        outputs = record.get("output")
        if outputs is None or outputs == []:
            raise BadRecord("no-answer")
        if not isinstance(outputs, list):
            raise BadRecord("answers-not-a-list")
        return self.ranked(instruction_of(record), [text_of({"text": text}, "text", role="answer") for text in outputs])
