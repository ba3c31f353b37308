"""Policies that learn from rollouts: drawn once, trained in parts, taken up within one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bandits import distances
from lightning import Callback, Trainer
from policies import data_of, fitted, policy_of, trained

from lit_sft.checkpoint.opening import Checkpoint, open_checkpoint

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


def test_a_run_that_is_killed_at_any_part_of_a_rollout_goes_on_to_the_same_weights(
    base: Checkpoint, tmp_path: Path
) -> None:
    whole, keep = policy_of(base.path, **MANY_STEPS), Keep(tmp_path)
    expected = fitted(whole, data_of(base, tmp_path), tmp_path, keep, max_steps=6)
    assert len({str(ids) for ids in keep.drawn}) == 3
    for step in range(1, 6):
        stage = policy_of(base.path, **MANY_STEPS)
        found = fitted(stage, data_of(base, tmp_path), tmp_path, ckpt_path=tmp_path / f"{step}.ckpt", max_steps=6)
        assert found["train/loss"] == expected["train/loss"][step:]
        assert found["train/reward"][-1] == expected["train/reward"][-1]
        for name, weight in trained(whole).items():
            torch.testing.assert_close(trained(stage)[name], weight, rtol=0, atol=0)


def test_rloo_finds_the_best_policy_of_a_problem_with_a_known_answer(base: Checkpoint, tmp_path: Path) -> None:
    before, after = distances(base, tmp_path, num_steps=40, lr=0.02)
    assert before > 0.2
    assert after < 0.05
