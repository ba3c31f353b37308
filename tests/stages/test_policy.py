"""Policies that learn from rollouts: drawn once, trained in parts, taken up within one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from policies import data_of, fitted, policy_of, prompts_in, trained

from lit_sft.__main__ import main
from lit_sft.checkpoint.opening import Checkpoint, open_checkpoint
from lit_sft.corpora.belle import Belle
from lit_sft.data.rollout_prompts import PromptData
from lit_sft.data.sft import SFTData
from lit_sft.distributed.fsdp2 import FSDP2
from lit_sft.errors import ConfigError, UserError
from lit_sft.losses.policy import POLICY_LOSSES
from lit_sft.rewards._base import Answered, RewardFunction
from lit_sft.rewards._together import Scores
from lit_sft.stages._rollout_metrics import Measured
from lit_sft.tuning.full import Full
from lit_sft.tuning.lora import LoRA

MANY_STEPS = {"num_iterations": 2}
"""With two parts, a rollout of four optimizer steps."""


class Keep(Callback):
    """Saves a checkpoint after each optimizer step, and notes what was drawn."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.drawn: list[list[int]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.rollout is not None:
            self.drawn.append(pl_module.rollout.ids.tolist())
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


@pytest.fixture
def base(tiny: Callable[[str], Path]) -> Checkpoint:
    return open_checkpoint(tiny("baichuan-7b"))


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_part_of_a_rollout_goes_on_to_the_same_weights(
    base: Checkpoint, tmp_path: Path
) -> None:
    whole, keep = policy_of(base.path, **MANY_STEPS), Keep(tmp_path)
    expected = fitted(whole, data_of(base, tmp_path), tmp_path, keep, max_steps=6)
    assert len({str(ids) for ids in keep.drawn}) == 2
    for step in range(1, 6):
        stage = policy_of(base.path, **MANY_STEPS)
        found = fitted(stage, data_of(base, tmp_path), tmp_path, ckpt_path=tmp_path / f"{step}.ckpt", max_steps=6)
        assert found["train/loss"] == expected["train/loss"][step:]
        assert found.get("train/reward", [])[-1:] in ([], expected["train/reward"][-1:])
        for name, weight in trained(whole).items():
            torch.testing.assert_close(trained(stage)[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize(
    "changes", [{"num_answers": 2}, {"num_parts": 4, "num_iterations": 1}, {"num_parts": 1, "num_iterations": 4}]
)
def test_within_a_rollout_a_run_goes_on_only_with_what_it_was_made_with(
    base: Checkpoint, tmp_path: Path, changes: dict[str, int]
) -> None:
    fitted(policy_of(base.path, **MANY_STEPS), data_of(base, tmp_path), tmp_path, Keep(tmp_path), max_steps=1)
    stage = policy_of(base.path, **{**MANY_STEPS, **changes})
    with pytest.raises(ConfigError, match=f"within a rollout of {next(iter(changes))}"):
        fitted(stage, data_of(base, tmp_path), tmp_path, ckpt_path=tmp_path / "1.ckpt")


class Picky(RewardFunction):
    """No opinion on every fourth answer, and a number that is none on another."""

    def score(self, answers: Sequence[Answered]) -> list[float | None]:
        return [(None, 1.0, float("nan"), 2.0)[place % 4] for place in range(len(answers))]


def test_answers_without_a_finite_reward_teach_nothing(base: Checkpoint, tmp_path: Path) -> None:
    stage = policy_of(base.path, rewards=[Picky()], num_iterations=2)
    columns: list[Any] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            columns.append(pl_module.rollout.columns["advantages"])

    found = fitted(stage, data_of(base, tmp_path), tmp_path, Look(), max_steps=1)
    assert columns[0].tolist() == pytest.approx([0.0, -1.0, 0.0, 1.0] * 2)
    assert found["train/unscored_ratio"] == [0.5]
    assert found["train/reward"] == [1.5]


@pytest.mark.parametrize("algorithm", [name for name in POLICY_LOSSES if name != "ppo"])
def test_every_algorithm_trains(base: Checkpoint, tmp_path: Path, algorithm: Any) -> None:
    stage = policy_of(base.path, algorithm=algorithm, kl="loss", num_iterations=2)
    found = fitted(stage, data_of(base, tmp_path), tmp_path)
    assert found["train/clip_ratio/region_mean"][0] == 0  # before the first step nothing is held back
    assert found["train/kl"][0] == 0 < found["train/kl"][-1]
    assert min(found["train/gradient_norm"]) > 0


def test_advantages_of_both_baselines_have_the_kl_taken_off(base: Checkpoint) -> None:
    scores = Scores(torch.tensor([[1.0], [2.0], [4.0], [5.0]]), ["worth"], [1.0])
    measured = Measured(scores, torch.ones(4), torch.ones(4).bool(), kl=torch.tensor([0.0, 2.0, 0.0, 0.0]))
    options = {"num_answers": 2, "beta": 0.5}
    others = policy_of(base.path, **options).advantages(measured)
    assert others.tolist() == [0.0, 0.0, -1.0, 1.0]
    group = policy_of(base.path, algorithm="dr_grpo", **options).advantages(measured)
    assert group.tolist() == [0.0, 0.0, -0.5, 0.5]
    clipped = policy_of(base.path, reward_clip=(0.0, 4.0), **options).advantages(measured)
    assert clipped.tolist() == [0.0, 0.0, 0.0, 0.0]


def test_held_out_prompts_of_several_corpora_have_a_mean_reward_each(
    base: Checkpoint, tmp_path: Path, corpus_file: Path
) -> None:
    data = PromptData(
        base,
        [prompts_in(tmp_path), Belle(str(corpus_file))],
        max_length=min(128, base.context_length),
        max_new_tokens=4,
        micro_batch_size=2,
        validation_fraction=0.5,
        cache=str(tmp_path / "cache"),
    )
    options: dict[str, Any] = {"max_steps": 1, "limit_val_batches": 1.0, "val_check_interval": 1}
    found = fitted(policy_of(base.path, num_parts=1), data, tmp_path, **options)
    (reward,), *of_corpora = (found[f"val/reward{corpus}"] for corpus in ("", "/PromptRecords", "/Belle"))
    (of_records,), (of_belle,) = of_corpora
    assert of_records != of_belle
    assert min(of_records, of_belle) < reward < max(of_records, of_belle)


def test_training_stops_where_the_policy_leaves_its_reference(base: Checkpoint, tmp_path: Path) -> None:
    stage = policy_of(base.path, lr=0.1, max_kl=0.05, num_parts=1)
    found = fitted(stage, data_of(base, tmp_path), tmp_path, max_steps=30)
    assert len(found["train/loss"]) < 30
    assert found["train/objective/kl"][-1] > 0.05
    assert "above max_kl 0.05" in str(stage.stopped_because)


def test_full_tuning_measures_the_kl_from_a_second_network(base: Checkpoint, tmp_path: Path) -> None:
    stage = policy_of(base.path, tuning=Full(), num_parts=1)
    found = fitted(stage, data_of(base, tmp_path), tmp_path, max_steps=2)
    assert found["train/objective/kl"][0] == 0 != found["train/objective/kl"][1]
    assert stage.reference_network is not None
    assert not any(weight.requires_grad for weight in stage.reference_network.parameters())


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"num_answers": 1}, "compared with others to the same prompt"),
            ({"tuning": LoRA(rank=2, dropout=0.1)}, "dropout is 0.1"),
            ({"rewards": []}, "empty list"),
            ({"temperature": 0.0}, "must be above 0"),
            ({"num_parts": 0}, "num_parts is 0"),
            ({"beta": -1.0}, "beta is -1.0"),
            ({"max_kl": 0.0}, "max_kl is 0.0"),
            ({"reward_clip": (1.0, 0.0)}, "lower bound first"),
            ({"scale": "group"}, "baseline others does not know"),
            ({"baseline": "each"}, "no sum to clip"),
        ],
    )
    def test_what_cannot_learn_is_refused_at_once(self, base: Checkpoint, options: dict[str, Any], said: str) -> None:
        with pytest.raises(UserError, match=said):
            policy_of(base.path, **options)

    @pytest.mark.parametrize(
        ("options", "trainer", "said"),
        [
            ({}, {"accumulate_grad_batches": 4}, "not a multiple of trainer.accumulate_grad_batches 4"),
            ({"num_parts": 16}, {}, "make fewer answers"),
        ],
    )
    def test_what_does_not_suit_the_trainer_is_refused(
        self, base: Checkpoint, tmp_path: Path, options: dict[str, Any], trainer: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(ConfigError, match=said):
            fitted(policy_of(base.path, **options), data_of(base, tmp_path), tmp_path, **trainer)

    @pytest.mark.parametrize(
        ("strategy", "precision", "said"),
        [
            (SimpleNamespace(root_device=torch.device("cpu")), "16-mixed", "Use bf16-mixed or 32-true"),
            (FSDP2(), "32-true", "each token would gather every block"),
        ],
        ids=["16-mixed", "fsdp2"],
    )
    def test_precisions_and_strategies_that_cannot(
        self, base: Checkpoint, strategy: Any, precision: str, said: str
    ) -> None:
        """A trainer on a CPU would turn the one into bf16-mixed and refuse the other itself."""
        stage: Any = policy_of(base.path)
        stage._trainer = SimpleNamespace(
            strategy=strategy,
            precision=precision,
            max_epochs=1,
            max_steps=-1,
            datamodule=PromptData.__new__(PromptData),
        )
        with pytest.raises(ConfigError, match=said):
            stage.setup("fit")

    def test_another_distribution_than_the_policys(
        self, write_config: Callable[..., str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = Path(write_config())
        text = file.read_text(encoding="utf-8").replace("class_path: SFT\n", "class_path: Policy\n")
        file.write_text(text, encoding="utf-8")
        assert main(["fit", "--config", str(file), "--model.init_args.top_p", "0.9"]) == 2
        assert "drawn from the policy itself" in capsys.readouterr().err

    def test_conversations_in_place_of_prompts(self, base: Checkpoint, tmp_path: Path, corpus_file: Path) -> None:
        data: Any = SFTData(base, [Belle(str(corpus_file))], max_length=96, cache=str(tmp_path / "cache"))
        with pytest.raises(ConfigError, match="set data.class_path to PromptData"):
            fitted(policy_of(base.path), data, tmp_path)
