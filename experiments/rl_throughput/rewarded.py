"""The reward of both contestants, and a callback that keeps what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from lightning import Callback, Trainer

from lit_sft.rewards._base import Answered, RewardFunction


def share(answer: str) -> float:
    """Of the words of an answer (w123), those of an even number."""
    numbers = [word[1:] for word in answer.split() if word[1:].isdigit()]
    return sum(number[-1] in "02468" for number in numbers) / max(1, len(numbers))


class Even(RewardFunction):
    """The same as a reward."""

    def score(self, answers: Sequence[Answered]) -> list[float | None]:
        """Of each answer."""
        return [share(answered.answer) for answered in answers]


class Rewards(Callback):
    """Keeps the mean reward of each step."""

    found: ClassVar[list[float]] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        if trainer.global_step > len(self.found):
            self.found.append(float(trainer.callback_metrics["train/reward"]))
