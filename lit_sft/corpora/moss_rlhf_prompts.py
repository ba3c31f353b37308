"""Prompts of MOSS-RLHF (`ppo_data/train.json`): an array of lists of utterances.

    [["渡船几点开？"], ["渡船几点开？", "八点。"]]

become user: 渡船几点开？, and user: 渡船几点开？, assistant: 八点。, an answer to compare with. User and assistant take
turns from the first utterance on; MOSS-RLHF counts from the last, and so reads lists of an even length with the roles
exchanged.
"""

from __future__ import annotations

from typing import Any

from lit_sft.conversation import Conversation
from lit_sft.corpora._base import Corpus
from lit_sft.corpora._turns import in_order, utterances_of


class MossRlhfPrompts(Corpus):
    """Conversations that are lists of texts; the assistant is asked for the last or the next one."""

    layout = "one JSON array of lists of texts"
    list_key = "utterances"
    layouts = (frozenset({"utterances"}),)

    def parse(self, record: dict[str, Any]) -> Conversation:
        """User and assistant in turns."""
        return in_order(utterances_of(record, self.list_key, role="turns"), is_prompt=True)
