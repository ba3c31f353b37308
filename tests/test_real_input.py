"""The path on real records: a sample of BELLE, and the Baichuan-7B checkpoint whose outputs were recorded."""

import json
from pathlib import Path
from typing import Any

import pytest
from goldens import GOLDEN, SHARED
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_sft.__main__ import main

BELLE = SHARED / "data/belle/Belle_open_source_0.5M.json"


@pytest.mark.slow
@pytest.mark.skipif(not BELLE.is_file(), reason="needs a sample of BELLE: set LIT_SFT_SHARED")
@pytest.mark.parametrize("tuning", [{"class_path": "Full"}, {"class_path": "LoRA", "init_args": {"rank": 8}}])
def test_the_loss_falls_on_real_records_and_predict_answers(tuning: dict[str, Any], tmp_path: Path) -> None:
    options = {
        "runs": str(tmp_path),
        "model.init_args.checkpoint": str(GOLDEN / "baichuan-7b/checkpoint"),
        "model.init_args.tuning": json.dumps(tuning),
        "model.init_args.optimizer.init_args.lr": "0.01",
        "data.init_args.corpora": json.dumps([{"class_path": "Belle", "init_args": {"path": str(BELLE)}}]),
        "data.init_args.max_length": "128",
        "data.init_args.max_bad_fraction": "1.0",
        "data.init_args.num_workers": "0",
        "data.init_args.validation_fraction": "0.01",
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.max_steps": "40",
        "trainer.accumulate_grad_batches": "1",
        "trainer.log_every_n_steps": "1",
        "trainer.enable_progress_bar": "false",
        "model.init_args.generation.init_args.max_new_tokens": "8",
    }
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    assert main(["fit", "--config", str(GOLDEN.parents[1] / "configs/baichuan7b_lora.yaml"), *words]) == 0
    (run,) = tmp_path.iterdir()
    events = EventAccumulator(str(run))
    events.Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    counts = json.loads((run / "quarantine.jsonl").read_text().splitlines()[-1])["counts"]
    assert counts["skipped"].keys() <= {"prompt-too-long"}  # the tiny tokenizer makes many tokens

    assert main(["predict", "--run", str(run)]) == 0
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) >= 5
    assert all(row["prompt"] and row["reference"] for row in rows)
