"""Firefly (`firefly-train-1.1M.jsonl`, YeungNLP/firefly-train-1.1M): tasks of 24 kinds.

    {"kind": "Couplet", "input": "根据上联给出下联：湖上灯如雪", "target": "下联：山中月似霜"}

becomes user: 根据上联给出下联：湖上灯如雪, assistant: 下联：山中月似霜. A target can go on as a talk:

    {"kind": "OpenQA", "input": "渡船几点开？", "target": "八点。</s>最后一班呢？</s>傍晚六点。</s>"}

becomes user, assistant, user, assistant; a last question without an answer is dropped, as in the original code. A
`</s>` that some `<s>` opens is markup of a page, and stays text. Kind BELLE, a third of the file, is BELLE 0.5M again.
"""

from __future__ import annotations

from typing import Any

from lit_sft.conversation import Conversation, Message
from lit_sft.corpora._base import Corpus
from lit_sft.corpora._turns import in_order, said_before, text_of
from lit_sft.errors import BadRecord

END_OF_UTTERANCE = "</s>"


class Firefly(Corpus):
    """Tasks in the layout of Firefly.

    Args:
        path: Records with the keys kind, input, target.
        kinds: Only these kinds, for example Couplet, NLI, Summary; all if not given.
        kwargs: What every corpus takes.
    """

    layout = "one JSON object a line with the keys kind, input, target"
    layouts = (frozenset({"input", "target"}),)
    group_key = "kind"

    def __init__(self, path: str | list[str], kinds: list[str] | None = None, **kwargs: Any) -> None:
        super().__init__(path, **kwargs)
        self.groups = kinds

    def parse(self, record: dict[str, Any]) -> Conversation:
        """A task and its solution, or the talk in the target."""
        prompt = text_of(record, "input", role="prompt")
        target = text_of(record, "target", role="answer")
        parts = [target] if "<s>" in target else target.removesuffix(END_OF_UTTERANCE).split(END_OF_UTTERANCE)
        utterances = [prompt, *(part.strip() for part in parts)]
        if len(utterances) % 2:
            utterances.pop()
            self.repaired("unanswered-utterance-dropped")
        messages = said_before(record)
        for position, text in enumerate(utterances):
            if not text:
                raise BadRecord("no-answer" if position % 2 else "no-prompt")
            messages.append(Message("assistant" if position % 2 else "user", text))
        return in_order(messages)
