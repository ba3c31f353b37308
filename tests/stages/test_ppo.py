"""PPO: what its value function is and learns, how parts take turns, and how a run goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from peft.tuners.tuners_utils import BaseTunerLayer
from policies import Length, data_of, fitted, trained
from preference_goldens import equal, subject, tensors, variants
from streams import trainer_of

from lit_sft.checkpoint.opening import Checkpoint, open_checkpoint
from lit_sft.errors import ConfigError
from lit_sft.losses.moments import whitened
from lit_sft.rewards._base import Answered, RewardFunction
from lit_sft.rewards.trained import Trained
from lit_sft.stages._reward_scaling import RewardScaling
from lit_sft.stages.ppo import PPO, is_of_values
from lit_sft.stages.reward import Reward
from lit_sft.stages.schedules import Constant
from lit_sft.tuning.full import Full
from lit_sft.tuning.lora import LoRA

STEP: dict[str, Any] = {"accumulate_grad_batches": 2}
"""Of one part: a micro-batch for the policy, one for the values."""


@pytest.fixture
def base(tiny: Callable[[str], Path]) -> Checkpoint:
    return open_checkpoint(tiny("baichuan-7b"))


def ppo_of(folder: Path, *, lr: float = 0.01, **options: Any) -> PPO:
    """Four answers to each prompt, in two parts, which are trained on twice."""
    torch.manual_seed(1)
    options = {
        "rewards": [Length()], "tuning": LoRA(rank=2), "num_answers": 4, "num_parts": 2, "num_iterations": 2, **options
    }  # fmt: skip
    return PPO(
        str(folder), optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=lr), schedule=Constant(), **options
    )


@pytest.mark.parametrize("variant", [name for name in variants("ppo") if name.startswith("gae")])
def test_golden_advantages(base: Checkpoint, variant: str) -> None:
    given, config = tensors("ppo"), subject("ppo")["variants"][variant]["config"]
    rewards = subject("ppo")["variants"][config["rewards"]]["config"]
    assert rewards["kl_estimator"] == "k1"
    stage = ppo_of(base.path, beta=rewards["kl_coef"], gamma=config["gamma"], lam=config["lam"])
    mask = given["mask"].bool()
    columns = {"old": given["old_logps"], "reference": given["reference_logps"], "values": given["old_values"]}
    found = stage.token_advantages(given["scores"], mask, columns)
    equal(found.advantages, given[f"{variant}/advantages"])
    equal(found.returns * mask, given[f"{variant}/returns"] * mask)
    equal(whitened(found.advantages, mask), given[f"{variant}/whitened_advantages"] * mask)


def gradients(stage: PPO) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in stage.named_parameters() if p.grad is not None and p.grad.any()}


class Turns(Callback):
    """Which parameters get gradients in each micro-batch, and which adapter is left in use."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []
        self.in_use: set[str] = set()

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        self.seen.append(gradients(pl_module))

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        layers = [module for module in pl_module.modules() if isinstance(module, BaseTunerLayer)]
        self.in_use |= {name for layer in layers for name in layer.active_adapters}


def test_a_part_trains_the_policy_and_then_the_values(base: Checkpoint, tmp_path: Path) -> None:
    turns = Turns()
    stage = ppo_of(base.path, value_lr_ratio=3.0)
    fitted(stage, data_of(base, tmp_path), tmp_path, turns, **STEP, max_steps=4)
    of_policy, both = turns.seen[0], turns.seen[3]
    assert of_policy
    assert not any(map(is_of_values, of_policy))
    assert any(map(is_of_values, both))
    assert {name for name in turns.seen[1] if not is_of_values(name)} == set(of_policy)
    assert turns.in_use == {"default"}
    rates = {group["lr"] for group in stage.trainer.optimizers[0].param_groups}
    assert sorted(rates) == pytest.approx([0.01, 0.03])
    moved = {name for name, weight in trained(stage).items() if "lora_B" in name and weight.any()}
    assert moved == {name for name in trained(stage) if "lora_B" in name}


def test_gradients_are_the_same_under_gradient_checkpointing(base: Checkpoint, tmp_path: Path) -> None:
    """Where the backward pass computes again, it is with the adapter of the forward pass."""
    found = []
    for is_checkpointed in (False, True):
        turns = Turns()
        stage = ppo_of(base.path, gradient_checkpointing=is_checkpointed)
        fitted(stage, data_of(base, tmp_path), tmp_path, turns, **STEP, max_steps=3)
        found.append(turns.seen)
    for plain, again in zip(*found, strict=True):
        assert plain.keys() == again.keys()
        for name, gradient in plain.items():
            torch.testing.assert_close(again[name], gradient)


def test_without_a_reward_model_values_begin_at_zero(base: Checkpoint, tmp_path: Path) -> None:
    found = fitted(ppo_of(base.path), data_of(base, tmp_path), tmp_path, **STEP, max_steps=2)
    assert found["train/value/mean"][0] == 0
    assert found["train/policy/approxkl_avg"][0] == 0
    assert found["train/value/clipfrac_avg"][0] == 0


def test_values_begin_as_the_reward_model_and_move_while_it_stays(base: Checkpoint, tmp_path: Path) -> None:
    model = Reward(str(base.path), LoRA(rank=3))
    model.configure_model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
    model.statistics = {"mean": 0.5, "std": 2.0}
    model.export(tmp_path / "reward", model.state_dict())
    reward = Trained(str(tmp_path / "reward"), weight=3.0)
    stage = ppo_of(base.path, rewards=[reward])
    stage.configure_model()
    stage.eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    head = reward.load()[1]
    with torch.no_grad(), stage.tuning.using(stage.model, "reward_0"):
        hidden = stage.causal_lm.get_decoder()(input_ids=ids).last_hidden_state[0]
        expected = torch.tensor([3 * reward.normalized(float(raw)) for raw in head(hidden)])
    with torch.no_grad(), stage.tuning.using(stage.model, "value"):
        hidden = stage.causal_lm.get_decoder()(input_ids=ids).last_hidden_state[0]
        assert stage.value_head is not None
        torch.testing.assert_close(stage.value_head(hidden) + stage.value_offset, expected)
    stage.train()
    before = {name: p.clone() for name, p in stage.named_parameters() if ".reward_0." in name}
    fitted(stage, data_of(base, tmp_path), tmp_path, **STEP, max_steps=2)
    assert before
    for name, weight in before.items():
        assert torch.equal(dict(stage.named_parameters())[name], weight)


class Keep(Callback):
    """Saves a checkpoint after each optimizer step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        file = self.folder / f"{trainer.global_step}.ckpt"
        if trainer.global_step and not file.exists():
            trainer.save_checkpoint(file)


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_part_of_a_rollout_goes_on_to_the_same_weights(
    base: Checkpoint, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"reward_norm": "mean_std", "target_kl": 0.01, "kl_horizon": 20}
    whole = ppo_of(base.path, **options)
    expected = fitted(whole, data_of(base, tmp_path), tmp_path, Keep(tmp_path), **STEP, max_steps=9)
    assert len(set(expected["train/objective/kl_coefficient"])) == 3
    for step in range(1, 9):
        stage = ppo_of(base.path, **options)
        kept = tmp_path / f"{step}.ckpt"
        found = fitted(stage, data_of(base, tmp_path), tmp_path, ckpt_path=kept, **STEP, max_steps=9)
        assert found["train/loss"] == expected["train/loss"][step:]
        assert found["train/objective/scores"][-1] == expected["train/objective/scores"][-1]
        assert found["train/objective/kl_coefficient"][-1] == expected["train/objective/kl_coefficient"][-1]
        for name, weight in trained(whole).items():
            assert torch.equal(trained(stage)[name], weight), (step, name)


class Silent(RewardFunction):
    """Has an opinion of no answer, or of none but the first."""

    def score(self, answers: Sequence[Answered]) -> list[float | None]:
        return [1.0, *[None] * (len(answers) - 1)]


def test_an_answer_without_a_score_teaches_nothing(base: Checkpoint, tmp_path: Path) -> None:
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            seen.append(pl_module.rollout and pl_module.rollout.columns)

    stage = ppo_of(base.path, rewards=[Silent()])
    found = fitted(stage, data_of(base, tmp_path), tmp_path, Look(), **STEP, max_steps=2)
    columns = seen[1]
    assert columns["is_scored"][0].any()
    assert not columns["is_scored"][1:].any()
    assert not columns["advantages"][1:].any()
    assert found["train/unscored_ratio"][0] == pytest.approx(7 / 8)
    assert all(map(math.isfinite, found["train/loss"]))


def test_rewards_are_scaled_by_all_so_far() -> None:
    scaling = RewardScaling("std")
    assert scaling(torch.tensor([2.0])).tolist() == [2.0]
    found = scaling(torch.tensor([4.0, math.nan, 6.0]))
    assert found[[0, 2]].tolist() == [2.0, 3.0]
    assert found[1].isnan()
    scaling = RewardScaling("mean_std", (-1.0, 0.5))
    assert scaling(torch.tensor([2.0, 4.0, 6.0])).tolist() == [-1.0, 0.0, 0.5]


def test_what_cannot_be_trained_is_refused_with_the_reason(base: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two adapters on one base, and Full has none"):
        ppo_of(base.path, tuning=Full())
    refused: list[tuple[dict[str, Any], str]] = [
        ({"lam": 1.5}, "lam is 1.5; it must be between 0 and 1"),
        ({"value_clip": 0.0}, "value_clip is 0.0; it must be above 0"),
        ({"beta": -1}, "beta is -1; it must be at least 0"),
        ({"beta": 0, "target_kl": 1.0}, "beta is 0, which no target_kl can steer"),
        ({"reward_clip": (1.0, -1.0)}, "give the lower bound first"),
    ]
    for options, said in refused:
        with pytest.raises(ConfigError, match=said):
            ppo_of(base.path, **options)
    with pytest.raises(ConfigError, match="accumulate_grad_batches is 1, but policy and values take turns"):
        fitted(ppo_of(base.path), data_of(base, tmp_path), tmp_path, accumulate_grad_batches=1)


def test_ddp_must_look_for_the_adapter_that_a_micro_batch_does_not_use(base: Checkpoint) -> None:
    stage = ppo_of(base.path)
    stage.trainer = trainer_of(strategy="ddp")
    with pytest.raises(ConfigError, match="Set it to ddp_find_unused_parameters_true"):
        stage.setup("fit")
