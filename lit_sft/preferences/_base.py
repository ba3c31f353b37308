"""Corpora in which answers were judged: which of two or more to one prompt is better, or whether one is good.

What is wrong in many such files is refused or counted here, the same for every layout. Refused: `equal-answers`, where
only blanks differ, too; `answer-ranked-twice`; `prompts-differ`, `prompt-ends-with-answer`, and a side that is missing
(`no-chosen`), no text, or not one message. Kept and counted, for it may be meant so: `one-character-answer`;
`answer-begins-another`, mostly one that was cut off; `role-marker-in-answer`, mostly the next turn, leaked.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from itertools import groupby, permutations
from typing import Any, ClassVar

from lit_sft.conversation import Judged, Message, Preference, Record
from lit_sft.corpora._base import Corpus
from lit_sft.errors import BadRecord, ConfigError

_ROLE_MARKER = re.compile(r"\n\n(?:Human|Assistant)[:：]")


class JudgedAnswers(Corpus):
    """Answers to prompts, and what somebody thought of them."""

    def look_at(self, answers: Sequence[str]) -> None:
        """Count what is odd about answers but may be meant so."""
        if any(len(answer) == 1 for answer in answers):
            self.repaired("one-character-answer")
        if any(longer.startswith(shorter) for longer, shorter in permutations(answers, 2)):
            self.repaired("answer-begins-another")
        if any(_ROLE_MARKER.search(answer) for answer in answers):
            self.repaired("role-marker-in-answer")


class PreferenceCorpus(JudgedAnswers):
    """Prompts with two or more answers, of which it is known which is better."""

    record_type: ClassVar[type[Record]] = Preference

    @abstractmethod
    def parse(self, record: dict[str, Any]) -> Preference:
        """The answers to one prompt in a raw record, the best first."""

    def ranked(self, prompt: Sequence[Message], answers: Sequence[str], margin: float | None = None) -> Preference:
        """Answers to a prompt, the best first; of equal ones that stand side by side one is kept.

        Raises:
            BadRecord: `equal-answers` if there are no two; `answer-ranked-twice` if one is both better and worse than
                another.
        """
        kept = [answer for answer, _ in groupby(answers)]
        if len(kept) < 2:
            raise BadRecord("equal-answers" if len(answers) > 1 else "one-answer")
        if len(set(kept)) < len(kept):
            raise BadRecord("answer-ranked-twice")
        if len(kept) < len(answers):
            self.repaired("equal-answers-dropped")
        self.look_at(kept)
        return Preference(prompt, [Message("assistant", answer) for answer in kept], margin)


class PairCorpus(PreferenceCorpus):
    """Records with a column for the better answer and one for the other.

    Args:
        path: The records.
        chosen_key: The key of the better answer, where the file calls it differently.
        rejected_key: That of the other; a corpus of BELLE has `reject`.
        kwargs: What every corpus takes.
    """

    pair_keys: ClassVar[tuple[str, str]] = ("chosen", "rejected")
    """How the columns are called if nothing else is given."""

    def __init__(
        self,
        path: str | list[str],
        chosen_key: str | None = None,
        rejected_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(path, **kwargs)
        self.chosen_key = chosen_key or self.pair_keys[0]
        self.rejected_key = rejected_key or self.pair_keys[1]
        if self.chosen_key == self.rejected_key:
            raise ConfigError(f"chosen_key and rejected_key of {path} are both {self.chosen_key}; give two keys")

    @property
    def record_keys(self) -> frozenset[str]:
        """Those of the two answers."""
        return frozenset({self.chosen_key, self.rejected_key})

    def layout_of(self, record: dict[str, Any]) -> frozenset[str] | None:
        """A record of this corpus has one of the answers."""
        return None if self.record_keys.isdisjoint(record) else self.layouts[0]

    def sides(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """The key of each answer, the better one first, and how reasons call it."""
        return (self.chosen_key, "chosen"), (self.rejected_key, "rejected")


class UnpairedCorpus(JudgedAnswers):
    """Prompts with one answer, of which it is known whether it is good."""

    record_type: ClassVar[type[Record]] = Judged

    @abstractmethod
    def parse(self, record: dict[str, Any]) -> Judged:
        """The answer to a prompt in a raw record, and the verdict."""

    def verdict(self, value: Any) -> bool:
        """A label as true or false; 0, 1 and texts that say it are taken, and counted.

        Raises:
            BadRecord: `no-label`; `label-not-true-or-false` for a number between, NaN or any other text.
        """
        if value is None or value == "":
            raise BadRecord("no-label")
        if isinstance(value, bool):
            return value
        text = str(value).strip().lower()
        if not isinstance(value, int | float | str) or text not in _VERDICTS:
            raise BadRecord("label-not-true-or-false")
        self.repaired("label-not-boolean")
        return _VERDICTS[text]


_VERDICTS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
