"""What validate and test print: a table that is read at a glance, and a file with all digits."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_sft.cli.measured import tell_measured
from lit_sft.stages.sft import SFT


def told(metrics: dict[str, float], run: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    trainer: Any = SimpleNamespace(
        callback_metrics={name: torch.tensor(value) for name, value in metrics.items()},
        is_global_zero=True,
        ckpt_path="last.ckpt",
        lightning_module=SimpleNamespace(shown_metrics=SFT.shown_metrics),
    )
    tell_measured(trainer, str(run), "test")
    return capsys.readouterr().out.splitlines()


def test_a_metric_is_a_row_and_a_corpus_is_a_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"test/loss": 0.72619, "test/loss/川菜": 1.5, "test/loss/Belle": 0.25}
    metrics |= {"test/token_accuracy": 0.5, "test/longer_wins": 0.125, "test/longer_wins/川菜": 1.0}
    assert told(metrics, tmp_path, capsys) == [
        "held out           all  Belle  川菜",
        "loss            0.7262   0.25   1.5",
        "token accuracy     0.5      -     -",
        "longer wins      0.125      -     1",
        str(tmp_path / "test.json"),
    ]
    assert json.loads((tmp_path / "test.json").read_text())["metrics"].keys() == metrics.keys()


def test_of_one_corpus_there_is_one_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told({"val/perplexity": 8, "val/loss": 2.079}, tmp_path, capsys)[:3] == [
        "held out",
        "loss        2.079",
        "perplexity      8",
    ]
