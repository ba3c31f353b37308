"""Answers with a known solution."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from unicodedata import normalize

from lit_sft.rewards._base import Answered, RewardFunction


class Matches(RewardFunction):
    """1 for an answer that is, or contains, the reference, 0 for others; no opinion without a reference.

    Blanks do not count, nor does the width of characters (NFKC). A number or word is not found within a longer one: 2
    neither in 12 nor in 2.5.
    """

    def score(self, answers: Sequence[Answered]) -> list[float | None]:
        """By the text of answer and reference."""
        return [self._score(answered) for answered in answers]

    def _score(self, answered: Answered) -> float | None:
        found = _expression(answered.reference or "")
        return None if found is None else float(found.search(normalize("NFKC", answered.answer)) is not None)


@lru_cache(maxsize=1024)
def _expression(reference: str) -> re.Pattern[str] | None:
    """What finds a reference whatever blanks stand in it; None if it says nothing."""
    characters = [character for character in normalize("NFKC", reference) if not character.isspace()]
    if not characters:
        return None
    before = r"(?<![0-9A-Za-z])" if _is_of_word(characters[0]) else ""
    after = r"(?![0-9A-Za-z])" if _is_of_word(characters[-1]) else ""
    if "0" <= characters[0] <= "9":
        before += r"(?<![0-9][.,])"
    if "0" <= characters[-1] <= "9":
        after += r"(?![.,][0-9])"
    return re.compile(before + r"\s*".join(map(re.escape, characters)) + after)


def _is_of_word(character: str) -> bool:
    return character.isascii() and character.isalnum()
