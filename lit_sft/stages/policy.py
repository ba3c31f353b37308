"""Policy gradients without a value network: the other answers to a prompt say what an answer should be worth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from lit_sft.errors import ConfigError
from lit_sft.losses.advantages import (
    Scale,
    batch_normalized,
    group_advantages,
    leave_one_out_advantages,
    penalized,
    separate_group_advantages,
)
from lit_sft.losses.policy import POLICY_LOSSES, PolicyLoss
from lit_sft.stages._policy_sums import MEASURES, PolicySums, policy_means
from lit_sft.stages._rollout import RolloutStage
from lit_sft.stages._rollout_buffer import RolloutBuffer
from lit_sft.stages._rollout_metrics import Measured
from lit_sft.tuning._base import Tuning

Algorithm = Literal["rloo", "grpo", "dr_grpo", "dapo", "gspo", "cispo"]

Baseline = Literal["others", "group", "each"]
"""What an answer is compared with: the mean of the other answers to its prompt (RLOO); the mean of all (GRPO); the same
for each reward by itself (GDPO)."""

SCALES: dict[str, Scale] = {"rloo": "none", "dr_grpo": "none"}
"""By what advantages are divided; that of the others is `group`."""


class Policy(RolloutStage):
    """RLOO, GRPO, Dr. GRPO, DAPO, GSPO and CISPO.

    Args:
        checkpoint: Model folder in its original layout.
        tuning: Which weights train.
        algorithm: A published combination of loss, baseline and scale; what follows changes a part of it.
        baseline: What an answer is compared with.
        scale: Whose standard deviation divides advantages: that of the answers to a prompt, of all, or none.
        clip_low: How far the ratio to the old policy may fall below 1 and still gain.
        clip_high: How far above 1.
        largest_ratio: Beyond which a ratio weighs no more where the advantage is negative.
        beta: Weight of the KL from the reference: what training starts from.
        kl: Where it enters. `reward`: each answer pays for its own; the best policy then is softmax(log reference +
            reward / beta). `loss`: token by token, as in GRPO's paper, which ends elsewhere: see losses/kl.py.
        corrects_kl: Whether that in the loss is weighted by the ratio.
        reward_clip: Range to which the sum of the rewards is clipped.
        entropy_weight: Of a bonus for the entropy of each token.
        kwargs: What every stage takes that learns from rollouts.
    """

    measures = MEASURES

    def __init__(
        self,
        checkpoint: str,
        tuning: Tuning,
        *,
        algorithm: Algorithm = "rloo",
        baseline: Baseline | None = None,
        scale: Scale | None = None,
        clip_low: float | None = None,
        clip_high: float | None = None,
        largest_ratio: float | None = None,
        beta: float = 0.05,
        kl: Literal["reward", "loss"] = "reward",
        corrects_kl: bool = True,
        reward_clip: tuple[float, float] | None = None,
        entropy_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(checkpoint, tuning, **kwargs)
        if self.num_answers < 2:
            raise ConfigError("num_answers is 1: answers are compared with others to the same prompt. Set 4 or 8")
        for name, value in (("beta", beta), ("entropy_weight", entropy_weight)):
            if not 0 <= value < float("inf"):
                raise ConfigError(f"{name} is {value}; it must be at least 0, and finite")
        if reward_clip and reward_clip[0] >= reward_clip[1]:
            raise ConfigError(f"reward_clip is {list(reward_clip)}; give the lower bound first")
        self.baseline: Baseline = baseline or ("others" if algorithm == "rloo" else "group")
        _refuse_combinations(self.baseline, scale, kl, beta, reward_clip)
        self.scale: Scale = scale or SCALES.get(algorithm, "group")
        self.beta = beta
        self.kl = kl
        self.reward_clip = reward_clip
        changes: dict[str, Any] = {"clip_low": clip_low, "clip_high": clip_high, "largest_ratio": largest_ratio}
        self.loss: PolicyLoss = replace(
            POLICY_LOSSES[algorithm],
            **{name: value for name, value in changes.items() if value is not None},
            kl_weight=beta if kl == "loss" else 0.0,
            corrects_kl=corrects_kl and kl == "loss",
            entropy_weight=entropy_weight,
        )

    @property
    def needs_old(self) -> bool:
        """Also for the KL of an answer."""
        return not self.is_on_policy or (self.beta > 0 and self.kl == "reward") or self.max_kl is not None

    @property
    def needs_reference(self) -> bool:
        """For the KL, wherever it enters."""
        return self.beta > 0 or super().needs_reference

    def credit(self, rollout: RolloutBuffer, own: Measured, everybody: Measured) -> None:
        """Advantages of answers [S]; those of all devices are at hand, so a mean over all is one."""
        first = self.trainer.global_rank * len(rollout)
        rollout.columns["advantages"] = self.advantages(everybody)[first : first + len(rollout)]

    def advantages(self, measured: Measured) -> Tensor:
        """How much better each answer is than others to its prompt, [S]; 0 where it is unscored."""
        scores, group = measured.scores, self.num_answers
        if self.baseline == "each":
            return separate_group_advantages(scores.values, group, scores.weights)
        kl = measured.kl if self.kl == "reward" and self.beta else None
        rewards = penalized(scores.total, torch.zeros(()) if kl is None else kl, self.beta, self.reward_clip)
        if self.baseline == "group":
            return group_advantages(rewards, group, self.scale)
        compared = leave_one_out_advantages(rewards, group)
        return batch_normalized(compared) if self.scale == "batch" else compared

    def totals(self, rollout: RolloutBuffer, turn: int) -> PolicySums:
        """The loss of a part, and what is measured of it."""
        return self.policy_sums(self.loss, rollout.part(turn % self.num_parts, self.device), rollout)

    def means(self, loss: float, count: float, *sums: float) -> dict[str, float]:
        """The loss, and what is measured of its tokens and ratios."""
        return {"loss": loss / count, **policy_means(*sums, has_reference=self.needs_reference)}


def _refuse_combinations(
    baseline: Baseline, scale: Scale | None, kl: str, beta: float, reward_clip: tuple[float, float] | None
) -> None:
    if baseline == "others" and scale == "group":
        raise ConfigError("scale is group, which baseline others does not know. Set it to none or batch")
    if baseline == "each" and (reward_clip or scale or (beta and kl == "reward")):
        raise ConfigError(
            "baseline each normalizes each reward by itself, so there is no sum to clip, to scale or to take a KL off: "
            "leave out reward_clip and scale, and set kl to loss or beta to 0"
        )
