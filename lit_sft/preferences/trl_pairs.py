r"""Pairs in the formats of TRL: of texts or of messages, with a prompt of their own or one that both sides contain.

    {"prompt": "渡船几点开？", "chosen": "八点。", "rejected": "自己看。", "margin": 2.0}
    {"prompt": [{"role": "user", "content": "渡船几点开？"}],
     "chosen": [{"role": "assistant", "content": "八点。"}], "rejected": [{"role": "assistant", "content": "自己看。"}]}
    {"chosen": [{"role": "user", "content": "渡船几点开？"}, {"role": "assistant", "content": "八点。"}],
     "rejected": [{"role": "user", "content": "渡船几点开？"}, {"role": "assistant", "content": "自己看。"}]}

become user: 渡船几点开？ with the answers 八点。 and 自己看。 UltraFeedback has a prompt and whole conversations: they
must agree. `system` and `history` may stand beside a prompt; one that is a transcript (`\n\nHuman: ...\n\nAssistant:`)
becomes its turns. Two texts without a prompt are `no-prompt`: where one ends cannot be seen. If they are transcripts,
`HhRlhf` reads them. `score_chosen` and `score_rejected` are not a margin: their scale is another one in each file.
"""

from __future__ import annotations

import math
from typing import Any

from lit_sft.conversation import Preference
from lit_sft.errors import BadRecord
from lit_sft.preferences._base import PairCorpus
from lit_sft.preferences._sides import answer_of, prompt_of, same_prompt, split_off_answer


class TrlPairs(PairCorpus):
    """Pairs in the standard and the conversational formats of TRL."""

    layout = (
        "objects with the keys prompt, chosen, rejected (texts, or lists of messages with role, content), margin. "
        "HhRlhf reads pairs of whole transcripts"
    )
    layouts = (frozenset({"chosen", "rejected"}),)

    def parse(self, record: dict[str, Any]) -> Preference:
        """The prompt, if there is one, or what both sides begin with."""
        for key in ("score_chosen", "score_rejected", "prompt_id"):
            record.get(key)
        values = [record.get(key) for key, _ in self.sides()]
        if all(isinstance(value, list) and len(value) > 1 for value in values):
            return self._conversations(record)
        return self.ranked(prompt_of(record), [answer_of(record, *side) for side in self.sides()], _margin(record))

    def _conversations(self, record: dict[str, Any]) -> Preference:
        """Each side is a whole conversation, which ends with its answer."""
        sides = [split_off_answer(record, key, role) for key, role in self.sides()]
        prompt = same_prompt([before for before, _ in sides])
        if dict.get(record, "prompt"):
            given = prompt_of(record)
            is_question = isinstance(record["prompt"], str) and given[-1] in prompt  # the first one in UltraFeedback
            if given != prompt and not is_question:
                raise BadRecord("prompts-differ")
        return self.ranked(prompt, [answer for _, answer in sides], _margin(record))


def _margin(record: dict[str, Any]) -> float | None:
    margin = record.get("margin")
    if margin is None:
        return None
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
        raise BadRecord("margin-not-a-number")
    return float(margin)
