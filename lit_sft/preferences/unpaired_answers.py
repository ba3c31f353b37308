"""Single answers with a verdict, as KTO learns from: in the formats of TRL and of LLaMA-Factory (`kto_en_demo.json`).

    {"prompt": "渡船几点开？", "completion": "八点。", "label": true}
    {"prompt": [{"role": "user", "content": "渡船几点开？"}],
     "completion": [{"role": "assistant", "content": "八点。"}], "label": true}
    {"messages": [{"role": "user", "content": "渡船几点开？"}, {"role": "assistant", "content": "八点。"}],
     "label": true}
    {"conversations": [{"from": "human", "value": "渡船几点开？"}, {"from": "gpt", "value": "八点。"}], "kto_tag": true}

become user: 渡船几点开？ with the answer 八点。, which is good. A label may be called `kto_tag` in each of them.
"""

from __future__ import annotations

from typing import Any

from lit_sft.conversation import Judged, Message
from lit_sft.corpora._fields import is_filled
from lit_sft.preferences._base import UnpairedCorpus
from lit_sft.preferences._sides import answer_of, prompt_of, split_off_answer

LABEL_KEYS = ("label", "kto_tag")
TALK_KEYS = (("messages", "role", "content"), ("conversations", "from", "value"))


class UnpairedAnswers(UnpairedCorpus):
    """Prompts with one answer, and whether it is a good one."""

    layout = "objects with the keys prompt, completion, label (or messages, label; or conversations, kto_tag)"
    layouts = (frozenset({"completion"}), frozenset({"messages"}), frozenset({"conversations"}))

    def parse(self, record: dict[str, Any]) -> Judged:
        """The last answer is the one that was judged."""
        is_good = self.verdict(next((record[key] for key in LABEL_KEYS if is_filled(record, key)), None))
        prompt, answer = _sides_of(record)
        self.look_at([answer])
        return Judged(prompt, Message("assistant", answer), is_good)


def _sides_of(record: dict[str, Any]) -> tuple[list[Message], str]:
    for key, role_key, text_key in TALK_KEYS:
        if key in record:
            return split_off_answer(record, key, "answer", role_key=role_key, text_key=text_key)
    return prompt_of(record), answer_of(record, "completion", "answer")
