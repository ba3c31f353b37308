"""Answers that say the same again and again, into which reinforcement learning likes to fall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_sft.errors import ConfigError
from lit_sft.rewards._base import Answered, RewardFunction


class Repetition(RewardFunction):
    """Minus the share of n-grams of characters that occurred before in the answer: 0 if all differ, nearly -1 at worst.

    With n = 2, `abab` has ab, ba, ab: two of three are distinct, which is -1/3.

    Args:
        n: Characters of an n-gram; shorter answers have 0.
        kwargs: What every reward takes.
    """

    def __init__(self, n: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if n < 1:
            raise ConfigError(f"the reward {self.name} has n {n}; it must be at least 1")
        self.n = n

    def score(self, answers: Sequence[Answered]) -> list[float | None]:
        """By the text of the answer."""
        return [self._score(answered.answer) for answered in answers]

    def _score(self, text: str) -> float:
        grams = [text[start : start + self.n] for start in range(len(text) - self.n + 1)]
        return len(set(grams)) / len(grams) - 1 if grams else 0.0
