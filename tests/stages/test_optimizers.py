"""Optimizers that a configuration names by class path."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_sft.__main__ import main

pytestmark = pytest.mark.slow  # as a whole

OPTIMIZERS = [
    ("torch.optim.AdamW", {"fused": True}),
    ("bitsandbytes.optim.AdamW8bit", {}),
    ("bitsandbytes.optim.PagedAdamW32bit", {}),
]


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize(("class_path", "options"), OPTIMIZERS, ids=[path for path, _ in OPTIMIZERS])
def test_it_trains_and_clips_and_an_interrupted_run_ends_with_the_same_weights(
    write_config: Callable[..., str], tiny: Callable[[str], Path], tmp_path: Path, class_path: str, options: Any
) -> None:
    model = {
        "checkpoint": str(tiny("baichuan-7b")),
        "tuning": {"class_path": "Full"},
        "optimizer": {"class_path": class_path, "init_args": {"lr": 0.003, "weight_decay": 0.1, **options}},
    }
    trainer = {
        "precision": "bf16-mixed",
        "gradient_clip_val": 1.0,
        "max_steps": 4,
        "max_epochs": 9,
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
    }
    config = write_config(model=model, data={"max_length": 64}, trainer=trainer, samples={"count": 0})

    def fit(name: str, *words: str) -> Path:
        code = main(["fit", "--config", config, "--name", name, *words])
        assert code == (130 if name == "half" else 0)
        (run,) = (tmp_path / "runs").glob(f"{name}-*")
        return run / "checkpoints" / "last.ckpt"

    whole = torch.load(fit("whole"), weights_only=True)
    interrupt = [{"class_path": "fakes.Interrupt", "init_args": {"step": 3}}]
    half = fit("half", "--trainer.callbacks", json.dumps(interrupt))
    assert torch.load(half, weights_only=True)["global_step"] == 2
    resumed = torch.load(fit("resumed", "--ckpt_path", str(half)), weights_only=True)
    assert whole["global_step"] == resumed["global_step"] == 4
    for name, weight in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], weight), name
    summaries = [json.loads(file.read_text()) for file in (tmp_path / "runs").glob("whole-*/summary.json")]
    assert summaries[0]["after"]["val/loss"] < 6.5  # 7.2 of an untrained one
