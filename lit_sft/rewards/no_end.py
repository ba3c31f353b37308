"""Answers that do not come to an end are cut in the middle of a sentence, and cost the most."""

from __future__ import annotations

from collections.abc import Sequence

from lit_sft.rewards._base import Answered, RewardFunction


class NoEnd(RewardFunction):
    """-1 for an answer that was cut because it did not end by itself, 0 for others."""

    def score(self, answers: Sequence[Answered]) -> list[float | None]:
        """By `is_ended`."""
        return [0.0 if answered.is_ended else -1.0 for answered in answers]
