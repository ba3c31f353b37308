"""Pairs in the layout of MOSS-RLHF's reward model (`rm/reward_datahelper.py`): lists of utterances.

    {"chosen": ["渡船几点开？", "八点。"], "rejected": ["渡船几点开？", "自己看。"]}

becomes user: 渡船几点开？ with the answers 八点。 and 自己看。 User and assistant take turns from the first utterance
on; the last is the answer, and those before it must be the same on both sides.
"""

from __future__ import annotations

from typing import Any

from lit_sft.conversation import Message, Preference
from lit_sft.corpora._turns import in_order, text_of
from lit_sft.errors import BadRecord
from lit_sft.preferences._base import PairCorpus
from lit_sft.preferences._sides import same_prompt


class MossRlhf(PairCorpus):
    """Pairs of conversations that are lists of texts and differ in the last one."""

    layout = "objects with the keys chosen, rejected: lists of texts, of which the last is the answer"
    layouts = (frozenset({"chosen", "rejected"}),)

    def parse(self, record: dict[str, Any]) -> Preference:
        """What stands before the last utterance is the prompt."""
        sides = [_utterances(record.get(key), role) for key, role in self.sides()]
        prompt = same_prompt([messages[:-1] for messages in sides])
        return self.ranked(prompt, [messages[-1].content for messages in sides])


def _utterances(texts: Any, role: str) -> list[Message]:
    if texts is None or texts == []:
        raise BadRecord(f"no-{role}")
    if not isinstance(texts, list):
        raise BadRecord(f"{role}-not-a-list")
    messages = []
    for place, text in enumerate(texts):
        name = role if place == len(texts) - 1 else ("answer" if place % 2 else "prompt")
        messages.append(Message("assistant" if place % 2 else "user", text_of({"text": text}, "text", role=name)))
    return list(in_order(messages).messages)  # the user speaks last where their number is odd
