"""Questions with four options, a folder of CSV files by subject, and how a model is asked."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lit_sft.conversation import Message
from lit_sft.errors import ConfigError, DataError, accepted

LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Question:
    """A question; `answer` is empty where it is not published."""

    subject: str
    id: str
    text: str
    options: Mapping[str, str]
    answer: str


class MultipleChoice(ABC):
    """A benchmark whose questions have one right option.

    Args:
        folder: Its files, as they are released.
    """

    name: ClassVar[str]
    subjects: ClassVar[Mapping[str, Mapping[str, str]]]
    """By category the subjects: name of the file -> name in the prompt."""

    further: ClassVar[Mapping[str, frozenset[str]]]
    """Groups of subjects that the authors keep a score of, beside the categories."""

    splits: ClassVar[tuple[str, ...]]
    """Those to measure on, the first one unless told otherwise; examples are taken from dev."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def file(self, split: str, subject: str) -> Path:
        """Where a subject stands."""

    @abstractmethod
    def heading(self, subject: str) -> str:
        """What stands before the first question."""

    @abstractmethod
    def asked(self, question: Question) -> str:
        """A question with its options, up to where the letter stands."""

    @abstractmethod
    def messages(self, subject: str, shots: list[Question], question: Question) -> list[Message]:
        """What a chat model is asked after the examples `shots`."""

    def plain(self, subject: str, shots: list[Question], question: Question) -> str:
        """The same as one text, for a model that continues it."""
        examples = "".join(f"{self.asked(shot)}{shot.answer}\n\n" for shot in shots)
        return f"{self.heading(subject)}{examples}{self.asked(question)}"

    @classmethod
    def called(cls, subject: str) -> str:
        """Its name in a prompt."""
        return next(names[subject] for names in cls.subjects.values() if subject in names)

    @classmethod
    def groups(cls) -> dict[str, set[str]]:
        """Subjects by category and further group."""
        return {**{name: set(of) for name, of in cls.subjects.items()}, **{k: set(v) for k, v in cls.further.items()}}

    def present(self, split: str, chosen: list[str] | None) -> list[str]:
        """The subjects to measure: those of which there is a file, or those that were chosen.

        Raises:
            ConfigError: If an unknown one is chosen.
            DataError: If there is no file.
        """
        known = [subject for names in self.subjects.values() for subject in names]
        for subject in chosen or ():
            if subject not in known:
                raise ConfigError(f"{self.name} has no subject {subject!r}. {accepted(subject, known)}")
        found = [subject for subject in chosen or known if chosen or self.file(split, subject).is_file()]
        if not found:
            raise DataError(
                f"{self.folder} holds no file of {self.name}: expected {self.file(split, known[0])}, as it is released"
            )
        return found

    def read(self, split: str, subject: str) -> list[Question]:
        """The questions of a subject.

        Raises:
            DataError: If the file is missing, or a row is not a question.
        """
        file = self.file(split, subject)
        try:
            with file.open(encoding="utf-8-sig", newline="") as opened:
                rows = [{str(k).strip().lower(): v for k, v in row.items()} for row in csv.DictReader(opened)]
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}") from None
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{file} is not a CSV file in UTF-8: {error}") from None
        if not rows:
            raise DataError(f"{file} holds no question")
        return [self._question(file, subject, number, row) for number, row in enumerate(rows)]

    def _question(self, file: Path, subject: str, number: int, row: Mapping[str, str | None]) -> Question:
        wanted = ("question", *(letter.lower() for letter in LETTERS))
        if missing := [key for key in wanted if row.get(key) is None]:
            lacks = ", ".join(missing)
            raise DataError(f"{file}: question {number + 1} has no {lacks}; expected question,A,B,C,D,answer")
        answer = (row.get("answer") or "").strip()
        if answer not in {*LETTERS, ""}:
            raise DataError(f"{file}: question {number + 1} has the answer {answer!r}; expected A, B, C or D")
        # The first column of CMMLU has no name.
        name = row.get("id") or row.get("") or str(number)
        options = {letter: str(row[letter.lower()]) for letter in LETTERS}
        return Question(subject, name, str(row["question"]), options, answer)
