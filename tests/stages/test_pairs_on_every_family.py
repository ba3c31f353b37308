"""Reward models and DPO on the network of every family, under every tuning."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rankings import ranked, written
from streams import Notes, trainer_of

from lit_sft.checkpoint.opening import Checkpoint, families
from lit_sft.data.preference import PreferenceData
from lit_sft.objectives.dpo import DPO
from lit_sft.stages.preference import Preference
from lit_sft.stages.reward import Reward
from lit_sft.stages.schedules import Constant
from lit_sft.tuning.full import Full
from lit_sft.tuning.lora import LoRA
from lit_sft.tuning.qlora import QLoRA

pytestmark = pytest.mark.slow

ABOUT = {"system": "助手"}
"""In place of MOSS's own instruction, which is longer than the context of a tiny checkpoint."""

TUNINGS = {"lora": LoRA(rank=2), "qlora": QLoRA(rank=2), "full": Full()}


def curves(stage: Any, checkpoint: Checkpoint, folder: Path) -> dict[str, list[float]]:
    """Three steps on four pairs."""
    records = [ranked(f"问题{i}", "请，谢谢" + "。" * i, "走开" + "！" * i, **ABOUT) for i in range(4)]
    data = PreferenceData(
        checkpoint,
        [written(folder / "pairs.jsonl", records)],
        max_length=min(384, checkpoint.context_length),
        micro_batch_size=4,
        validation_fraction=0.0,
        cache=str(folder / "cache"),
    )
    notes = Notes()
    trainer_of(max_steps=3, max_epochs=-1, limit_val_batches=0, logger=notes, default_root_dir=folder).fit(
        stage, datamodule=data
    )
    return {name: [value for _, value in points] for name, points in notes.found.items()}


@pytest.mark.parametrize("tuning", TUNINGS)
def test_dpo_moves_every_policy_from_its_reference(checkpoint: Checkpoint, tmp_path: Path, tuning: str) -> None:
    stage = Preference(
        str(checkpoint.path),
        TUNINGS[tuning],
        objective=DPO(),
        family=checkpoint.family.name,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        schedule=Constant(),
        gradient_checkpointing=True,
    )
    found = curves(stage, checkpoint, tmp_path)
    assert found["train/loss"][0] == pytest.approx(math.log(2), abs=1e-3)
    assert found["train/rewards/margins"][-1] > 0
    assert found["train/loss"][-1] < found["train/loss"][0]


def test_a_reward_model_of_every_network_learns(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Under each tuning in turn: what a tuning does to a network, DPO has shown."""
    tuning = list(TUNINGS)[sorted(families()).index(checkpoint.family.name) % len(TUNINGS)]
    stage = Reward(
        str(checkpoint.path),
        TUNINGS[tuning],
        family=checkpoint.family.name,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        schedule=Constant(),
        gradient_checkpointing=True,
    )
    found = curves(stage, checkpoint, tmp_path)
    assert found["train/loss"][-1] < found["train/loss"][0]
    assert found["train/margin"][-1] > found["train/margin"][0]
