"""Several rewards of the same answers: their weighted sum, and each by its name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_sft.errors import ConfigError
from lit_sft.losses.advantages import weighted_sum
from lit_sft.rewards._base import Answered, RewardFunction


@dataclass(frozen=True)
class Scores:
    """What N answers are worth under each of F rewards.

    Args:
        values: [N, F] float32, NaN where a reward has no opinion or no finite number.
        names: Of the rewards, each once.
        weights: Of the rewards.
    """

    values: Tensor
    names: Sequence[str]
    weights: Sequence[float]

    @property
    def total(self) -> Tensor:
        """Weighted sum [N] of what is scored; NaN where nothing is."""
        return weighted_sum(self.values, self.weights)

    def by_name(self) -> dict[str, Tensor]:
        """The values [N] of each reward, without its weight."""
        return dict(zip(self.names, self.values.unbind(1), strict=True))


def check_rewards(rewards: Sequence[RewardFunction]) -> None:
    """Refuse what could not be told apart in the logs.

    Raises:
        ConfigError: If there is no reward, or two have one name.
    """
    if not rewards:
        raise ConfigError("rewards is an empty list; name at least one, such as {class_path: NoEnd}")
    names = [reward.name for reward in rewards]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"two rewards have the name {twice[0]}; give one another: init_args: {{name: ...}}")


def score_answers(rewards: Sequence[RewardFunction], answers: Sequence[Answered]) -> Scores:
    """Ask every reward about all answers.

    Raises:
        ConfigError: If a reward gives another number of scores than there are answers, or what is not a number.
    """
    columns = [_column(reward, answers) for reward in rewards]
    values = torch.tensor(columns, dtype=torch.float32).reshape(len(columns), len(answers)).T
    return Scores(values, [reward.name for reward in rewards], [reward.weight for reward in rewards])


def _column(reward: RewardFunction, answers: Sequence[Answered]) -> list[float]:
    found = reward.score(answers)
    place = f"the reward {reward.name} ({type(reward).__name__}.score)"
    if len(found) != len(answers):
        raise ConfigError(f"{place} gave {len(found)} scores for {len(answers)} answers; it must give one for each")
    try:
        scores = [math.nan if score is None else float(score) for score in found]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{place} must give numbers or None: {error}") from None
    return [score if math.isfinite(score) else math.nan for score in scores]
