"""A reward: what an answer to a prompt is worth. One file in this folder is one reward."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_sft.conversation import Message
from lit_sft.errors import ConfigError

if TYPE_CHECKING:
    from lit_sft.checkpoint.opening import Checkpoint
    from lit_sft.tuning._base import Tuning


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
    """Gives each answer a number; higher is better.

    A class of one's own derives from it, and where it has options, hands `**kwargs` on.

    Args:
        weight: What its numbers are multiplied with in the sum of all rewards; 0 only shows them.
        name: How logs call it; the name of its class in small letters if not given.
    """

    weight = 1.0
    _name: str | None = None

    def __init__(self, weight: float = 1.0, name: str | None = None) -> None:
        if not math.isfinite(weight):
            raise ConfigError(f"the weight of the reward {name or type(self).__name__} is {weight}; it must be finite")
        if name is not None and not re.fullmatch(r"[\w.-]+", name):
            raise ConfigError(f"a reward has the name {name!r}; use letters, digits, '_', '.' and '-'")
        self.weight = weight
        self._name = name

    @property
    def name(self) -> str:
        """The given name, or that of its class: `no_end`."""
        return self._name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    def join(self, tuning: Tuning, model: Any, checkpoint: Checkpoint, name: str) -> bool:
        """Score on the network of a policy from now on, if the reward is a network that can.

        Args:
            tuning: Of the policy.
            model: What it loaded.
            checkpoint: Its base.
            name: Of an adapter to add.

        Returns:
            Whether it does.
        """
        return False

    @abstractmethod
    def score(self, answers: Sequence[Answered]) -> list[float | None]:
        """A number for each answer [N]; None where it has no opinion."""
