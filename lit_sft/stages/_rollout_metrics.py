"""What is measured of answers that were drawn, on all devices together, under the names that users of TRL know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from lit_sft.losses.advantages import spreads
from lit_sft.rewards._together import Scores


@dataclass(frozen=True)
class Measured:
    """Of S answers, group after group.

    Args:
        scores: What they are worth.
        lengths: Tokens of each [S].
        is_ended: Whether it ended by itself [S].
        kl: `k1` of each answer from the reference [S].
        differences: Of each token [N] how much likelier it is where it is trained than where it was drawn, as a
            log-ratio: rounding, and nothing else.
    """

    scores: Scores
    lengths: Tensor
    is_ended: Tensor
    kl: Tensor | None = None
    differences: Tensor | None = None

    @classmethod
    def together(cls, parts: Sequence[Self]) -> Self:
        """Those of several devices or batches, one behind the other."""
        first = parts[0]
        return replace(
            first,
            scores=replace(first.scores, values=torch.cat([part.scores.values for part in parts])),
            lengths=torch.cat([part.lengths for part in parts]),
            is_ended=torch.cat([part.is_ended for part in parts]),
            kl=_joined([part.kl for part in parts]),
            differences=_joined([part.differences for part in parts]),
        )

    def metrics(self, num_answers: int) -> dict[str, float]:
        """By name; what cannot be said is left out.

        Args:
            num_answers: Answers of a group.
        """
        total = self.scores.total
        lengths = self.lengths.float()
        found = {
            **_mean_and_std("reward", "reward_std", total),
            **{
                name: value
                for reward, values in self.scores.by_name().items()
                for name, value in _mean_and_std(f"rewards/{reward}/mean", f"rewards/{reward}/std", values).items()
            },
            "unscored_ratio": float(total.isnan().float().mean()),
            "completions/clipped_ratio": float(1 - self.is_ended.float().mean()),
            **_range("completions/{}_length", lengths),
            **_range("completions/{}_terminated_length", lengths[self.is_ended]),
        }
        if num_answers > 1:
            found["frac_reward_zero_std"] = float((spreads(total, num_answers) == 0).float().mean())
        if self.kl is not None:
            found["objective/kl"] = float(self.kl.mean())
        if self.differences is not None:
            distance = self.differences.abs()
            found["sampling/sampling_logp_difference/mean"] = float(distance.mean())
            found["sampling/sampling_logp_difference/max"] = float(distance.max())
            found |= _range("sampling/importance_sampling_ratio/{}", self.differences.exp())
        return found

    def mean_rewards(self, numbers: Tensor, corpora: Sequence[str]) -> dict[str, float]:
        """The mean reward of the answers to prompts of each corpus, as `reward/NAME`, where any is scored.

        Args:
            numbers: Of the corpus of each answer [S].
            corpora: Their names.
        """
        of_corpora = {name: self.scores.total[numbers == number] for number, name in enumerate(corpora)}
        means = {f"reward/{name}": float(total.double().nanmean()) for name, total in of_corpora.items()}
        return {name: mean for name, mean in means.items() if math.isfinite(mean)}


def _mean_and_std(mean: str, std: str, values: Tensor) -> dict[str, float]:
    """Of what is scored."""
    scored = values[~values.isnan()].double()
    if not len(scored):
        return {}
    return {mean: float(scored.mean()), std: float(scored.std()) if len(scored) > 1 else 0.0}


def _range(name: str, values: Tensor) -> dict[str, float]:
    if not len(values):
        return {}
    found = {"mean": values.mean(), "min": values.min(), "max": values.max()}
    return {name.format(which): float(value) for which, value in found.items()}


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known else None
