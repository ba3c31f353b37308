r"""Anthropic's hh-rlhf (`harmless-base/train.jsonl.gz` and others) and its translations: two whole transcripts.

    {"chosen": "\n\nHuman: 渡船几点开？\n\nAssistant: 八点。",
     "rejected": "\n\nHuman: 渡船几点开？\n\nAssistant: 自己看。"}

becomes user: 渡船几点开？ with the answers 八点。 and 自己看。 Each side is cut at its last `\n\nAssistant:`, and what
stands before must be the same. Not at the first letter that differs: 你好！ and 你们好。 would leave 你 in the
prompt. A colon may be a full-width one.
"""

from __future__ import annotations

from typing import Any

from lit_sft.conversation import Preference
from lit_sft.corpora._turns import text_of
from lit_sft.preferences._base import PairCorpus
from lit_sft.preferences._sides import same_prompt, transcript_of


class HhRlhf(PairCorpus):
    """Pairs of transcripts between Human and Assistant that differ in the last answer."""

    layout = r'objects with the keys chosen, rejected: transcripts such as "\n\nHuman: ...\n\nAssistant: ..."'
    layouts = (frozenset({"chosen", "rejected"}),)

    def parse(self, record: dict[str, Any]) -> Preference:
        """What both say before the last answer is the prompt."""
        sides = [transcript_of(text_of(record, key, role=role), role) for key, role in self.sides()]
        return self.ranked(same_prompt([prompt for prompt, _ in sides]), [answer for _, answer in sides])
