"""Pairs of MedicalGPT (`dpo_zh.jsonl`, and shibing624/medical's reward files).

    {"system": "", "history": [["你好", "你好！"]], "question": "渡船几点开？",
     "response_chosen": "八点。", "response_rejected": "自己看。"}

becomes user: 你好, assistant: 你好！, user: 渡船几点开？ with the answers 八点。 and 自己看。
"""

from __future__ import annotations

from typing import Any

from lit_sft.conversation import Message, Preference
from lit_sft.corpora._turns import said_before, text_of
from lit_sft.preferences._base import PairCorpus
from lit_sft.preferences._sides import answer_of, asked


class MedicalReward(PairCorpus):
    """Questions with a chosen and a rejected response in the layout of MedicalGPT."""

    layout = "objects with the keys question, response_chosen, response_rejected and (optional) system, history"
    layouts = (frozenset({"response_chosen", "response_rejected"}),)
    pair_keys = ("response_chosen", "response_rejected")

    def parse(self, record: dict[str, Any]) -> Preference:
        """The question behind its history is the prompt."""
        prompt = [*said_before(record), Message("user", text_of(record, "question", role="prompt"))]
        return self.ranked(asked(prompt), [answer_of(record, *side) for side in self.sides()])
