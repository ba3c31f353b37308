"""A table of runs: each with its state, whatever became of it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_sft.__main__ import main
from lit_sft.runs.lock import is_locked, locked

CONFIG = """
seed_everything: 1
trainer: {precision: null}
model:
  class_path: lit_sft.stages.sft.SFT
  init_args: {checkpoint: models/moss, tuning: {class_path: lit_sft.tuning.lora.LoRA}}
data: {class_path: lit_sft.data.sft.SFTData, init_args: {}}
"""
MEASURED = {"optimizer_steps": 1200, "before": {"val/loss": 2.5}, "after": {"val/loss": 1.25}, "ended_early": None}


def begin(runs: Path, name: str, summary: dict[str, Any] | None = None) -> Path:
    run = runs / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG)
    (run / "manifest.json").write_text(json.dumps({"family": "moss"}))
    if summary:
        (run / "summary.json").write_text(json.dumps(summary))
    return run


def table(runs: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["runs", "--runs", str(runs)]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_run_is_a_line_with_what_was_trained_and_what_came_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin(tmp_path, "ferry-20261130-120000", MEASURED)
    (run / "weights").write_bytes(b"0" * 2_500_000)
    heading, line = table(tmp_path, capsys)
    assert heading.split() == ["run", "state", "step", "held", "out", "stage", "tuning", "family", "size"]
    cells = [cell.strip() for cell in line.split("  ") if cell]
    assert cells == [run.name, "finished", "1,200", "loss 2.5 -> 1.25", "SFT", "LoRA", "moss", "2.5 MB"]


def test_each_state_has_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(tmp_path, "early", MEASURED | {"ended_early": "ended at 50% of the run"})
    begin(tmp_path, "failed")
    begin(tmp_path, "unreadable", MEASURED)
    (tmp_path / "unreadable" / "manifest.json").write_text("{")
    begin(tmp_path, "without-family", MEASURED)
    (tmp_path / "without-family" / "manifest.json").write_text("{}")
    begin(tmp_path, "strange", MEASURED)
    (tmp_path / "strange" / "config.yaml").write_text("model: {")
    (tmp_path / "not-a-run").mkdir()
    found = {line.split()[0]: line.split("  ") for line in table(tmp_path, capsys)[1:]}
    states = {name: next(cell for cell in cells[1:] if cell).strip() for name, cells in found.items()}
    damaged = dict.fromkeys(["unreadable", "without-family", "strange"], "damaged")
    assert states == {"early": "ended early", "failed": "failed", **damaged}


def test_a_run_that_another_process_writes_is_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = begin(tmp_path, "ferry")
    code = (
        "import sys; from pathlib import Path; from lit_sft.runs.lock import locked\n"
        f"with locked(Path({str(run)!r})):\n print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        assert "running" in table(tmp_path, capsys)[1]
        process.communicate()
    assert "failed" in table(tmp_path, capsys)[1]


def test_asking_whether_a_run_is_locked_locks_nothing(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    assert not list(tmp_path.iterdir())
    with locked(tmp_path):
        pass
    assert not is_locked(tmp_path)


def test_where_there_is_no_run_it_says_how_to_begin_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--runs", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: no run in {tmp_path}/. Train one with `fit --config configs/...yaml`, or name their folder\n"
    )
