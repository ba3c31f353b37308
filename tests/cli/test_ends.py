"""What a verb says at its end is true, and says how to go on."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_sft.__main__ import main

pytestmark = pytest.mark.slow  # as a whole

WriteConfig = Callable[..., str]


def only_run(tmp_path: Path) -> Path:
    (run,) = (tmp_path / "runs").iterdir()
    return run


def test_a_trial_run_keeps_nothing_and_says_so(
    write_config: WriteConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(trainer={"fast_dev_run": 2})
    with caplog.at_level(logging.INFO, "lit_sft"):
        assert main(["fit", "--config", config]) == 0
    assert caplog.messages[-1] == "fast_dev_run: done, 2 optimizer steps; nothing is kept"
    assert list((tmp_path / "runs").iterdir()) == []
    assert main(["fit", "--config", config, "--resume", "auto"]) == 2
    assert "fast_dev_run keeps nothing; leave it out to resume" in capsys.readouterr().err
    assert main(["check", "--config", config]) == 0


def test_a_run_that_ends_early_says_where_and_why(
    write_config: WriteConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", "stopping_threshold": 100.0}}
    with caplog.at_level(logging.INFO, "lit_sft"):
        assert main(["fit", "--config", write_config(trainer={"max_epochs": 4, "callbacks": [stop]})]) == 0
    said = "ended at 25% of the run: EarlyStopping: Stopping threshold reached"
    assert any(message.startswith(said) for message in caplog.messages)
    assert json.loads((only_run(tmp_path) / "summary.json").read_text())["ended_early"].startswith(said)


def test_a_run_that_was_stopped_says_how_to_resume_it_and_its_summary_what_it_has_so_far(
    write_config: WriteConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = json.dumps([{"class_path": "fakes.Ask", "init_args": {"step": 3}}])
    assert main(["fit", "--config", write_config(), "--trainer.callbacks", ask]) == 143
    run = only_run(tmp_path)
    assert f"-m lit_sft fit --resume {run}" in caplog.text
    capsys.readouterr()
    assert main(["summary", "--run", str(run)]) == 0
    said = capsys.readouterr().out
    assert "What was learned in 3 optimizer steps" in said
    assert "not finished; to resume it: " in said
    assert "not since" in said
    assert main(["summary", "--run", str(tmp_path / "none")]) == 2
    assert "is not a run folder: it holds no config.yaml" in capsys.readouterr().err


def test_answers_of_a_base_model_without_a_run_are_named_after_it(
    write_config: WriteConfig, tmp_path: Path, tiny_folder: Path
) -> None:
    assert main(["predict", "--config", write_config()]) == 0
    assert [file.name for file in (tmp_path / "runs").iterdir()] == [f"predictions-{tiny_folder.name}.jsonl"]
