"""Answers of a form: what a regular expression finds in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lit_sft.errors import ConfigError
from lit_sft.rewards._base import Answered, RewardFunction


class Pattern(RewardFunction):
    r"""1 for an answer in which a regular expression finds something, 0 for others.

    `抱歉|无法|不能` with a weight of -0.5 is a penalty on refusals, `\A<think>.*</think>` one way to ask for a format.

    Args:
        expression: As in Python's `re`, anywhere in the answer; `.` stands for line ends, too.
        kwargs: What every reward takes.
    """

    def __init__(self, expression: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        try:
            self.expression = re.compile(expression, re.DOTALL)
        except re.error as error:
            raise ConfigError(
                f"the reward {self.name} has the expression {expression!r}, which is not a regular expression: {error}"
            ) from None

    def score(self, answers: Sequence[Answered]) -> list[float | None]:
        """By the text of the answer."""
        return [float(self.expression.search(answered.answer) is not None) for answered in answers]
