"""Long answers: a penalty that sets in before the limit (DAPO, arXiv:2503.14476, equation 13)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_sft.errors import ConfigError
from lit_sft.rewards._base import Answered, RewardFunction


class Overlong(RewardFunction):
    """0 for an answer of `max_tokens` - `buffer_tokens` tokens at most, falling to -1 at `max_tokens` and beyond.

    With 100 and 20, an answer of 80 tokens has 0, one of 90 has -0.5, one of 100 has -1.

    Args:
        max_tokens: Tokens of an answer, its end included, that are as bad as can be; such as `max_new_tokens`.
        buffer_tokens: Tokens before that over which the penalty grows.
        kwargs: What every reward takes.
    """

    def __init__(self, max_tokens: int, buffer_tokens: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < buffer_tokens <= max_tokens:
            raise ConfigError(
                f"the reward {self.name} has buffer_tokens {buffer_tokens} and max_tokens {max_tokens}; "
                "buffer_tokens must be at least 1 and at most max_tokens"
            )
        self.max_tokens = max_tokens
        self.buffer_tokens = buffer_tokens

    def score(self, answers: Sequence[Answered]) -> list[float | None]:
        """By `num_tokens`."""
        free = self.max_tokens - self.buffer_tokens
        return [-min(1.0, max(0, answered.num_tokens - free) / self.buffer_tokens) for answered in answers]
