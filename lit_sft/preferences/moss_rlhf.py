"""Pairs in the layout of MOSS-RLHF's reward model (`rm/reward_datahelper.py`): lists of utterances.

    {"chosen": ["渡船几点开？", "八点。"], "rejected": ["渡船几点开？", "自己看。"]}

becomes user: 渡船几点开？ with the answers 八点。 and 自己看。 User and assistant take turns from the first utterance
on; the last is the answer, and those before it must be the same on both sides.
"""

from __future__ import annotations

from typing import Any

from lit_sft.conversation import Preference
from lit_sft.corpora._turns import in_order, utterances_of
from lit_sft.preferences._base import PairCorpus
from lit_sft.preferences._sides import same_prompt


class MossRlhf(PairCorpus):
    """Pairs of conversations that are lists of texts and differ in the last one."""

    layout = "objects with the keys chosen, rejected: lists of texts, of which the last is the answer"
    layouts = (frozenset({"chosen", "rejected"}),)

    def parse(self, record: dict[str, Any]) -> Preference:
        """What stands before the last utterance is the prompt."""
        # The user speaks last where the number of utterances is odd.
        sides = [in_order(utterances_of(record, *side)).messages for side in self.sides()]
        prompt = same_prompt([messages[:-1] for messages in sides])
        return self.ranked(prompt, [messages[-1].content for messages in sides])
