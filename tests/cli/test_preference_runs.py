"""Runs on preference data: they go on as if they had not stopped, on one process and on two."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rankings import ranked, written

from lit_sft.__main__ import main

pytestmark = pytest.mark.slow  # as a whole

STAGES = {
    "reward": {"class_path": "Reward", "init_args": {"centering": 0.01}},
    "dpo": {"class_path": "Preference", "init_args": {"objective": {"class_path": "DPO"}}},
}
TUNINGS = {
    "lora": {"class_path": "LoRA", "init_args": {"rank": 4, "alpha": 8, "dropout": 0.0}},
    "full": {"class_path": "Full"},
}


@pytest.fixture
def preference_config(write_config: Callable[..., str], tmp_path: Path) -> Callable[..., str]:
    """A configuration for pairs, with accumulation and a validation within the epoch."""

    def write(stage: str, tuning: dict[str, Any], **trainer: Any) -> str:
        records = [ranked(f"question {i}", f"please {i % 5}", f"go away {i % 3}" + "!" * (i % 4)) for i in range(20)]
        corpus = {
            "class_path": "rankings.Rankings",
            "init_args": {"path": written(tmp_path / "pairs.jsonl", records).path},
        }
        file = Path(
            write_config(
                model={"tuning": tuning},
                data={"corpora": [corpus], "class_path": "PreferenceData"},
                trainer={"accumulate_grad_batches": 2, "val_check_interval": 2, **trainer},
            )
        )
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        model, chosen = content["model"], STAGES[stage]
        model["class_path"] = chosen["class_path"]
        model["init_args"] |= chosen["init_args"]
        model["init_args"]["optimizer"]["init_args"]["lr"] = 1e-3
        if stage == "reward":
            del model["init_args"]["generation"]
        content["data"]["class_path"] = content["data"]["init_args"].pop("class_path")
        file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        return str(file)

    return write


def run_named(tmp_path: Path, name: str) -> Path:
    (run,) = (tmp_path / "runs").glob(f"{name}-*")
    return run


def stored(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("stage", "tuning"), [("reward", "lora"), ("dpo", "lora"), ("dpo", "full")])
def test_a_run_that_is_stopped_goes_on_to_the_bit(
    preference_config: Callable[..., str], tmp_path: Path, stage: str, tuning: str
) -> None:
    config = preference_config(stage, TUNINGS[tuning])
    assert main(["fit", "--config", config, "--name", "whole"]) == 0
    ask = json.dumps([{"class_path": "fakes.Ask", "init_args": {"step": 3}}])
    half = ["fit", "--config", config, "--name", "half", "--resume", "auto"]
    assert main([*half, "--trainer.callbacks", ask]) == 128 + signal.SIGTERM
    assert stored(run_named(tmp_path, "half"))["global_step"] == 3
    assert main(half) == 0
    whole, resumed = (stored(run_named(tmp_path, name))["state_dict"] for name in ("whole", "half"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())
    summaries = [
        json.loads((run_named(tmp_path, n) / "summary.json").read_text(encoding="utf-8")) for n in ("whole", "half")
    ]
    assert summaries[0] == summaries[1]


def test_dpo_goes_on_from_an_adapter_with_that_as_its_reference(
    preference_config: Callable[..., str], tmp_path: Path
) -> None:
    assert main(["fit", "--config", preference_config("dpo", TUNINGS["lora"]), "--name", "first"]) == 0
    adapter = {
        "class_path": "LoRA",
        "init_args": {"adapter": str(run_named(tmp_path, "first") / "adapter"), "dropout": 0.0},
    }
    config = preference_config("dpo", adapter)
    assert main(["fit", "--config", config, "--name", "whole"]) == 0
    ask = json.dumps([{"class_path": "fakes.Ask", "init_args": {"step": 3}}])
    half = ["fit", "--config", config, "--name", "half", "--resume", "auto"]
    assert main([*half, "--trainer.callbacks", ask]) == 128 + signal.SIGTERM
    assert main(half) == 0
    whole, resumed = (stored(run_named(tmp_path, name))["state_dict"] for name in ("whole", "half"))
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())
    assert not any("reference" in name for name in whole)
    assert main(["predict", "--run", str(run_named(tmp_path, "half"))]) == 0
