"""Pairs in the form of ShareGPT, in two variants: LLaMA-Factory's ranking (`dpo_zh_demo.json`) and MedicalGPT's.

    {"conversations": [{"from": "system", "value": "你是小向导。"}, {"from": "human", "value": "渡船几点开？"}],
     "chosen": {"from": "gpt", "value": "八点。"}, "rejected": {"from": "gpt", "value": "自己看。"}}
    {"conversations": [{"from": "human", "value": "渡船几点开？"}], "chosen": "八点。", "rejected": "自己看。"}

become system: 你是小向导。, user: 渡船几点开？ with the answers 八点。 and 自己看。 `system` may stand beside
`conversations`. `tools` is not written into the prompt: where it is filled it counts as a key that is not used.
"""

from __future__ import annotations

from typing import Any

from lit_sft.conversation import Preference
from lit_sft.corpora._turns import CHAT_ROLES, entries_of, messages_of, system_of
from lit_sft.preferences._base import PairCorpus
from lit_sft.preferences._sides import answer_of, asked


class ShareGptPairs(PairCorpus):
    """Conversations in the form of ShareGPT with a chosen and a rejected answer to the last question."""

    layout = "objects with the keys conversations (from, value), chosen, rejected (texts or messages)"
    layouts = (frozenset({"chosen", "rejected"}),)

    def parse(self, record: dict[str, Any]) -> Preference:
        """The conversation as it stands is the prompt."""
        entries = entries_of(record, "conversations")
        prompt = messages_of(entries, "from", "value", CHAT_ROLES, before=system_of(record), is_prompt=True)
        return self.ranked(asked(prompt.messages), [answer_of(record, *side) for side in self.sides()])
