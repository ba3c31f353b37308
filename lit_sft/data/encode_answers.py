"""Preference, Judged -> Example: each answer behind the prompt, with the loss on the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from lit_sft.conversation import IGNORE_INDEX, Example, Judged, Preference
from lit_sft.data.encoder import Encoding
from lit_sft.errors import BadRecord

SEQUENCES_IN_ROW = 2
"""Sequences of `max_length` tokens that the answers of a record take at most: those of a pair always fit."""


@dataclass(frozen=True)
class AnswerEncoding(Encoding):
    """Answers to a prompt as sequences of prompt and answer, the best answer first.

    A cut answer would be judged on a torso, so nothing is cut: a record is left out if one of its sequences has more
    than `max_length` tokens. Of a ranking that has more than twice as many as a whole, the longest answers between the
    best and the worst are dropped.
    """

    def encode_record(self, record: Preference | Judged) -> Example:
        """Ids of all sequences, and labels of the answers.

        Raises:
            BadRecord: `prompt-too-long`, `answer-too-long`.
        """
        answers = record.answers if isinstance(record, Preference) else [record.answer]
        prompt_ids, replies = self.prompt_format.encode_answers(record.prompt, answers, self.tokenizer)
        if len(prompt_ids) >= self.max_length:
            raise BadRecord("prompt-too-long")
        if len(prompt_ids) + max(map(len, replies)) > self.max_length:
            raise BadRecord("answer-too-long")
        kept = self._fitting(len(prompt_ids), replies)
        judgment = record.margin if isinstance(record, Preference) else float(record.is_good)
        return Example(
            [token for reply in kept for token in (*prompt_ids, *reply)],
            [label for reply in kept for label in (*[IGNORE_INDEX] * len(prompt_ids), *reply)],
            record.source,
            "answers-dropped" if len(kept) < len(replies) else "",
            starts=[0, *accumulate(len(prompt_ids) + len(reply) for reply in kept[:-1])],
            judgment=None if kept[:2] != replies[:2] else judgment,
        )

    def _fitting(self, prompt_length: int, replies: Sequence[list[int]]) -> list[list[int]]:
        """The answers that fit together; of those between the best and the worst, the longest goes first."""
        kept = list(replies)
        while sum(prompt_length + len(reply) for reply in kept) > SEQUENCES_IN_ROW * self.max_length:
            kept.pop(max(range(1, len(kept) - 1), key=lambda place: len(kept[place])))
        return kept
