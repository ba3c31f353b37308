"""Preference optimization: objectives through the whole stage, references, guards, and what a cut does not change."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from rankings import judged, ranked, written
from streams import trainer_of

from lit_sft.checkpoint.opening import open_checkpoint
from lit_sft.conversation import IGNORE_INDEX, PairBatch
from lit_sft.data.preference import PreferenceData
from lit_sft.errors import ConfigError, TrainingError
from lit_sft.objectives.dpo import DPO
from lit_sft.objectives.ipo import IPO
from lit_sft.objectives.kto import KTO
from lit_sft.objectives.orpo import ORPO
from lit_sft.objectives.simpo import SimPO
from lit_sft.stages.preference import Preference
from lit_sft.stages.schedules import Constant
from lit_sft.tuning.full import Full
from lit_sft.tuning.lora import LoRA
from lit_sft.tuning.qlora import QLoRA

Tiny = Callable[[str], Path]

PAIRS = [ranked(f"question {i}", f"please {i % 5}", f"go away {i % 3}" + "!" * (i % 4)) for i in range(16)]


def data_of(tmp_path: Path, checkpoint: Path, records: list[dict[str, Any]] = PAIRS, **options: Any) -> PreferenceData:
    text = open_checkpoint(str(checkpoint))
    defaults = {"max_length": min(384, text.context_length), "micro_batch_size": 2, "validation_fraction": 0.25}
    return PreferenceData(
        text, [written(tmp_path / "pairs.jsonl", records)], **{"cache": str(tmp_path / "cache"), **defaults, **options}
    )


def stage_of(checkpoint: Path, tuning: Any, objective: Any = None, lr: float = 5e-3) -> Preference:
    return Preference(
        str(checkpoint),
        tuning,
        objective=objective or DPO(),
        optimizer=lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=0.0),
        schedule=Constant(),
    )


def trained(stage: Preference, data: PreferenceData, **options: Any) -> dict[str, float]:
    trainer = trainer_of(
        **{"max_steps": 4, "max_epochs": -1, "limit_val_batches": 1.0, "num_sanity_val_steps": 0, **options}
    )
    trainer.fit(stage, datamodule=data)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def first_batch(data: PreferenceData) -> PairBatch:
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, PairBatch)
    return batch


def test_log_probabilities_are_those_of_the_whole_softmax(checkpoint: Any, tmp_path: Path) -> None:
    stage = stage_of(checkpoint.path, LoRA(rank=2))
    stage.configure_model()
    batch = first_batch(data_of(tmp_path, checkpoint.path, packing=True, micro_batch_size=1))
    with torch.no_grad():
        found = stage.log_probs(batch)
        expected = []
        for row in range(len(batch.input_ids)):
            for number in range(1, int(batch.segment_ids[row].max()) + 1):
                own = batch.segment_ids[row] == number
                ids, labels = batch.input_ids[row][own], batch.labels[row][own]
                logps = stage.causal_lm(input_ids=ids[None]).logits[0].float().log_softmax(-1)
                places = (labels != IGNORE_INDEX).nonzero().squeeze(1)
                expected.append(logps[places - 1, labels[places]].sum())
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("tuning", [LoRA(rank=2), QLoRA(rank=2), Full()], ids=["lora", "qlora", "full"])
def test_dpo_begins_at_ln_2_and_prefers_what_was_chosen(tiny: Tiny, tmp_path: Path, tuning: Any) -> None:
    stage = stage_of(tiny("baichuan-7b"), tuning, lr=1e-3 if isinstance(tuning, Full) else 5e-3)
    data = data_of(tmp_path, tiny("baichuan-7b"))
    trainer = trainer_of(max_steps=4, max_epochs=-1, limit_val_batches=1.0, num_sanity_val_steps=-1)
    before: dict[str, float] = {}

    class Keep(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            before.update({name: float(value) for name, value in trainer.callback_metrics.items()})

    trainer.callbacks.append(Keep())
    trainer.fit(stage, datamodule=data)
    after = trainer.callback_metrics
    assert before["val/loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert before["val/rewards/margins"] == pytest.approx(0, abs=1e-3)
    assert after["val/loss"] < before["val/loss"] - 0.02
    assert after["val/rewards/accuracies"] == 1
