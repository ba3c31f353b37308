"""Alpaca records with a chosen and a rejected answer, LLaMA-Factory's ranking in alpaca format.

    {"instruction": "渡船几点开？", "input": "", "chosen": "八点。", "rejected": "自己看。",
     "history": [["你好", "你好！"]]}

becomes user: 你好, assistant: 你好！, user: 渡船几点开？ with the answers 八点。 and 自己看。 `input`, where it is
filled, follows the instruction on a new line; `system` stands first.
"""

from __future__ import annotations

from typing import Any

from lit_sft.conversation import Preference
from lit_sft.preferences._base import PairCorpus
from lit_sft.preferences._sides import answer_of, instruction_of


class AlpacaPairs(PairCorpus):
    """Instructions with a chosen and a rejected answer."""

    layout = "objects with the keys instruction, input, chosen, rejected and (optional) system, history"
    layouts = (frozenset({"chosen", "rejected"}),)

    def parse(self, record: dict[str, Any]) -> Preference:
        """The instruction behind its history is the prompt."""
        return self.ranked(instruction_of(record), [answer_of(record, *side) for side in self.sides()])
