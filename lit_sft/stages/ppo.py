"""PPO (arXiv:1707.06347): a value function says of each token what is still to come, and so which tokens were good."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from lit_sft.distributed.processes import gather
from lit_sft.errors import ConfigError
from lit_sft.losses.gae import Advantages, clipped_values, generalized_advantages, token_rewards, value_losses
from lit_sft.losses.kl import adapted_coefficient, k1
from lit_sft.losses.moments import moments, whitened
from lit_sft.losses.policy import POLICY_LOSSES
from lit_sft.rewards.trained import HEAD_FILE, Trained
from lit_sft.stages._policy_sums import MEASURES, PolicySums, policy_means
from lit_sft.stages._reward_scaling import RewardNorm, RewardScaling
from lit_sft.stages._rollout import RolloutStage
from lit_sft.stages._rollout_buffer import Part, RolloutBuffer
from lit_sft.stages._rollout_metrics import Measured
from lit_sft.stages._summed import Totals
from lit_sft.stages._value_sums import VALUE_MEASURES, ValueSums, beside_values, value_means
from lit_sft.tuning._base import Tuning
from lit_sft.tuning._heads import ScalarHead, hidden_size_of

POLICY, VALUE = "default", "value"
"""Adapters of what answers, and of the value function."""


class PPO(RolloutStage):
    """Proximal policy optimization, its value function a second adapter with a head of one number on the same base.

    A rollout has twice `num_parts` micro-batches: of each part one for the policy and one for the values. The value
    function begins as the reward model, where one of the rewards is an adapter on the same base; else at 0.

    Args:
        checkpoint: Model folder in its original layout.
        tuning: Which weights train: adapters.
        beta: Weight of the KL from the reference, what training starts from, in the reward of each token.
        target_kl: KL of an answer, in nats, towards which `beta` is steered after each rollout; it stays if not given.
        kl_horizon: Answers in which it changes by the whole error.
        gamma: Discount of later rewards.
        lam: Between the error of one step (0) and that of the whole answer (1), for which the values may be wrong.
        clip: How far the ratio to the old policy may be from 1 and still gain.
        value_clip: How far a value may be from the old one and still gain; as far as it likes if null.
        value_lr_ratio: Learning rate of the value function as a multiple of the policy's.
        whitens: Whether advantages of all tokens of a rollout get mean 0 and variance 1.
        reward_norm: What is done to the sum of the rewards first: `std` divides by the standard deviation of all so
            far, `mean_std` takes their mean off before.
        reward_clip: Range to which it is clipped then.
        entropy_weight: Of a bonus for the entropy of each token.
        kwargs: What every stage takes that learns from rollouts.
    """

    measures = (*MEASURES, "policy_losses", *VALUE_MEASURES)
    min_accumulation = 2  # a part for the policy, one for the values

    def __init__(
        self,
        checkpoint: str,
        tuning: Tuning,
        *,
        beta: float = 0.05,
        target_kl: float | None = None,
        kl_horizon: int = 10_000,
        gamma: float = 1.0,
        lam: float = 0.95,
        clip: float = 0.2,
        value_clip: float | None = 0.2,
        value_lr_ratio: float = 2.0,
        whitens: bool = True,
        reward_norm: RewardNorm | None = None,
        reward_clip: tuple[float, float] | None = None,
        entropy_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(checkpoint, tuning, **kwargs)
        if not tuning.exports_adapter:
            raise ConfigError(
                f"PPO trains two adapters on one base, and {type(tuning).__name__} has none. Take LoRA or QLoRA; or "
                "the stage Policy, which needs no values"
            )
        for name, share in {"gamma": gamma, "lam": lam}.items():
            if not 0 <= share <= 1:
                raise ConfigError(f"{name} is {share}; it must be between 0 and 1")
        for name, weight in {"beta": beta, "entropy_weight": entropy_weight}.items():
            if not 0 <= weight < math.inf:
                raise ConfigError(f"{name} is {weight}; it must be at least 0, and finite")
        positive = {"clip": clip, "value_clip": value_clip, "value_lr_ratio": value_lr_ratio, "kl_horizon": kl_horizon}
        for name, given in {**positive, "target_kl": target_kl}.items():
            if given is not None and not 0 < given < math.inf:
                raise ConfigError(f"{name} is {given}; it must be above 0, and finite")
        if target_kl is not None and not beta:
            raise ConfigError("beta is 0, which no target_kl can steer: set it to what training should begin with")
        self.kl_coefficient = beta
        self.target_kl = target_kl
        self.kl_horizon = kl_horizon
        self.gamma = gamma
        self.lam = lam
        self.value_clip = value_clip
        self.value_lr_ratio = value_lr_ratio
        self.whitens = whitens
        self.reward_scaling = RewardScaling(reward_norm, reward_clip)
        self.loss = replace(POLICY_LOSSES["ppo"], clip_low=clip, clip_high=clip, entropy_weight=entropy_weight)
        self.value_head: nn.Module | None = None
        self.value_offset = 0.0
        """Added to the number of the head, which has no constant of its own."""

    # What it says of itself.

    @property
    def parts_of_pass(self) -> int:
        """Each part comes for the policy, and then for the values."""
        return 2 * self.num_parts

    @property
    def needs_reference(self) -> bool:
        """For the KL in the reward."""
        return self.kl_coefficient > 0 or super().needs_reference

    def lr_multiplier(self, name: str) -> float:
        """The value function has a rate of its own."""
        return super().lr_multiplier(name) * (self.value_lr_ratio if is_of_values(name) else 1.0)

    # Set-up.

    def setup(self, stage: str) -> None:
        """Refuse a step of unequally many parts of policy and values, too.

        Raises:
            ConfigError: As every stage on rollouts.
        """
        super().setup(stage)
        if stage == "fit" and (accumulation := self.trainer.accumulate_grad_batches) % self.min_accumulation:
            raise ConfigError(
                f"trainer.accumulate_grad_batches is {accumulation}, but policy and values take turns, and a step "
                f"trains both: give an even number, such as {2 * self.num_parts} for a step of a whole rollout"
            )

    def _check_strategy(self) -> None:
        super()._check_strategy()
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("find_unused_parameters"):
            raise ConfigError(
                "trainer.strategy ddp does not work here. Each micro-batch uses one of two adapters, and the gradients "
                "of the other would stay those of one device, without a word. Set it to "
                "ddp_find_unused_parameters_true"
            )

    def add_parts(self) -> None:
        """The value function: that of a reward model, or of what training starts from."""
        super().add_parts()
        shared = [reward for reward in self.rewards if isinstance(reward, Trained) and reward.is_joined]
        folder = shared[0].folder if len(shared) == 1 else None
        self.tuning.add(self.model, VALUE, self.checkpoint, folder=folder, is_trainable=True)
        hidden_size = hidden_size_of(self.causal_lm)
        self.value_head = ScalarHead(hidden_size, is_zero=True)
        if folder:
            reward, weight = shared[0], shared[0].weight
            self.value_head = ScalarHead.load(folder / HEAD_FILE, hidden_size)
            self.value_offset = weight * reward.normalized(0.0)
            self.value_head.weight.data *= weight * reward.normalized(1.0) - self.value_offset

    # A rollout.

    def credit(self, rollout: RolloutBuffer, own: Measured, everybody: Measured) -> None:
        """Advantages and returns of tokens [S, T]; an answer without a score teaches nothing."""
        with self.tuning.using(self.model, VALUE):
            rollout.fill("values", lambda part: self.values(part)[0], self.device)
        first = self.trainer.global_rank * len(rollout)
        of_all = self.reward_scaling(everybody.scores.total)
        scores = of_all[first : first + len(rollout)]
        mask = rollout.mask & ~scores.isnan()[:, None]
        advantages, returns = self.token_advantages(scores, mask, rollout.columns)
        if self.whitens:
            sums = torch.stack(gather(moments(advantages, mask))).sum(0)
            advantages = whitened(advantages, mask, sums)
        rollout.columns |= {"advantages": advantages, "returns": returns, "is_scored": mask.float()}
        self._steer(of_all, everybody)

    def token_advantages(self, scores: Tensor, mask: Tensor, columns: Mapping[str, Tensor]) -> Advantages:
        """Of each token [R, T], before they are whitened.

        Args:
            scores: Of the answers [R].
            mask: Bool [R, T]: the tokens that count.
            columns: `old`, `reference` and `values` of the tokens.
        """
        kl = k1(columns["old"], columns["reference"]) if self.needs_reference else torch.zeros_like(columns["old"])
        rewards = token_rewards(scores.nan_to_num(), kl, mask, self.kl_coefficient)
        return generalized_advantages(rewards, columns["values"], mask, gamma=self.gamma, lam=self.lam)

    def _steer(self, scores: Tensor, everybody: Measured) -> None:
        """Log what was rewarded, and adapt the weight of the KL for the next rollout."""
        kl = 0.0 if everybody.kl is None else float(everybody.kl.mean())
        score, penalty = float(scores.nanmean()), -self.kl_coefficient * kl
        metrics = {
            "scores": score,
            "non_score_reward": penalty,
            "rlhf_reward": score + penalty,
            "kl_coefficient": self.kl_coefficient,
        }
        self.log_dict({f"train/objective/{name}": value for name, value in metrics.items()})
        if self.target_kl is not None:
            self.kl_coefficient = adapted_coefficient(
                self.kl_coefficient, kl, target=self.target_kl, num_answers=len(scores), horizon=self.kl_horizon
            )

    # Training.

    def totals(self, rollout: RolloutBuffer, turn: int) -> Totals:
        """Sums over a part, of the policy or of the values.

        The adapter stays in use up to the backward pass, which computes again under gradient checkpointing.
        """
        number, is_value = divmod(turn % self.parts_of_pass, 2)
        part = rollout.part(number, self.device)
        self.tuning.use(self.model, VALUE if is_value else POLICY)
        return self._of_values(part, rollout) if is_value else self._of_policy(part, rollout)

    def on_after_backward(self) -> None:
        """Whoever asks the network next asks the policy."""
        self.tuning.use(self.model, POLICY)

    def values(self, part: Part) -> tuple[Tensor, Tensor]:
        """Of each token what is still to come when it is written, [R, T] float32, and the mask.

        Under whichever adapter is in use.
        """
        read = self.read(part)
        assert self.value_head is not None
        return read.segments.grid(self.value_head(read.hidden) + self.value_offset), read.segments.mask

    def _of_policy(self, part: Part, rollout: RolloutBuffer) -> PolicySums:
        return beside_values(self.policy_sums(self.loss, part, rollout))

    def _of_values(self, part: Part, rollout: RolloutBuffer) -> ValueSums:
        values, _ = self.values(part)
        old, returns, is_scored = (rollout.of_part(name, part) for name in ("values", "returns", "is_scored"))
        assert old is not None
        assert returns is not None
        assert is_scored is not None
        mask = is_scored > 0
        losses = value_losses(values, old, returns, mask, self.value_clip)
        is_clipped = clipped_values(values, old, returns, self.value_clip)
        corpora = rollout.corpora[part.members].to(mask.device)
        return ValueSums.of(losses, values, returns, is_clipped, mask, corpora, len(rollout.corpus_names))

    def means(self, loss: float, count: float, *sums: float) -> dict[str, float]:
        """Losses, and what is measured of tokens, ratios and values."""
        of_policy, (policy_loss, *of_values) = sums[: len(MEASURES)], sums[len(MEASURES) :]
        return {
            "loss": loss / count,
            "loss/policy_avg": policy_loss / count,
            **policy_means(*of_policy, has_reference=self.needs_reference),
            **value_means(*of_values),
        }

    def divide_gradients(self, count: float, norm: float) -> float:
        """Clip policy and values each by its own norm: wrong values must not shorten the steps of the policy."""
        norms = []
        for is_value in (False, True):
            own = [p for name, p in self.named_parameters() if p.grad is not None and is_of_values(name) == is_value]
            norm = float(nn.utils.get_total_norm([p.grad for p in own if p.grad is not None]))
            norms.append(self.scale_gradients(own, count, norm))
        return math.hypot(*norms)

    # Checkpoints.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the weight of the KL, and the rewards so far."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["ppo"] = {"kl_coefficient": self.kl_coefficient, "reward_sums": self.reward_scaling.sums}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them."""
        super().on_load_checkpoint(checkpoint)
        if self.trainer.state.fn == "fit" and self.target_kl is not None:
            self.kl_coefficient = checkpoint["ppo"]["kl_coefficient"]
        self.reward_scaling.sums = checkpoint["ppo"]["reward_sums"]


def is_of_values(name: str) -> bool:
    """Whether a parameter of the stage belongs to the value function."""
    return name.startswith("value_head.") or name.endswith((f".{VALUE}", f".{VALUE}.weight"))
