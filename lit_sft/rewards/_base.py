"""A reward: what an answer to a prompt is worth. One file in this folder is one reward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from lit_sft.conversation import Message


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt with the answer that is judged.

    Args:
        prompt: Messages up to where the assistant spoke.
        answer: What it said.
        is_ended: Whether it ended by itself; otherwise it was cut.
        num_tokens: Of the answer, its end included.
        reference: An answer that is known to be right, if there is one.
    """

    prompt: Sequence[Message]
    answer: str
    is_ended: bool = True
    num_tokens: int = 0
    reference: str | None = None


class RewardFunction(ABC):
    """Gives each answer a number; higher is better."""

    @abstractmethod
    def score(self, answers: Sequence[Answered]) -> list[float | None]:
        """A number for each answer [N]; None where it has no opinion."""
