"""python -m lit_sft check, as a user types it."""

import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_sft.__main__ import main
from lit_sft.stages.sft import SFT

pytestmark = pytest.mark.slow  # as a whole

WriteConfig = Callable[..., str]


def test_every_part_is_tried_and_nothing_is_left(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    assert main(["check", "--config", write_config()]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    done = [words[0] for words in lines if "OK" in words]
    assert done == ["memory", "data", "first", "train", "validate", "save", "resume", "predict"]
    assert not list((tmp_path / "scratch").iterdir())
    assert not (tmp_path / "runs").exists()


def test_what_there_is_no_data_for_is_left_out(write_config: WriteConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", write_config(), "--data.init_args.validation_fraction", "0"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [words[0] for words in lines if "skipped:" in words] == ["validate", "predict"]


def test_an_estimate_reads_config_json_alone(
    write_config: WriteConfig, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "config-only"
    folder.mkdir()
    shutil.copy(tiny_folder / "config.json", folder)
    config = write_config(model={"checkpoint": str(folder)})
    assert main(["check", "--config", config, "--estimate_only", "true", "--device_memory", "80"]) == 0
    said = capsys.readouterr().out
    assert "of 80 GB a device" in said
    assert len(said.splitlines()) == 1


def test_what_does_not_fit_is_an_error_with_a_remedy(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--config", write_config(), "--device_memory", "0.001"]) == 2
    assert "does not fit" in capsys.readouterr().err


def test_a_part_that_fails_is_named(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.json"
    empty.write_text("")
    corpora = [{"class_path": "Belle", "init_args": {"path": str(empty)}}]
    options = ["--data.init_args.corpora", json.dumps(corpora)]
    assert main(["check", "--config", write_config(), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: train failed: ")
    assert str(empty) in said


def test_fit_says_what_it_will_take(write_config: WriteConfig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lit_sft"):
        assert main(["fit", "--config", write_config(trainer={"max_epochs": 1})]) == 0
    assert "memory of a step: about" in caplog.text
    assert "supervises no end" not in caplog.text


@pytest.mark.parametrize("is_by_chance", [True, False])
def test_a_fault_of_the_first_batch_alone_is_none_of_the_corpus(
    write_config: WriteConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, is_by_chance: bool
) -> None:
    """Rows of like length stand together, so a batch may hold nothing but answers that are cut off."""
    found = lambda stage, batch: "a fault" if len(batch.input_ids) == 1 or not is_by_chance else None  # noqa: E731
    monkeypatch.setattr(SFT, "check_first_batch", found)
    with caplog.at_level(logging.INFO, "lit_sft"):
        assert main(["fit", "--config", write_config(data={"packing": False}, trainer={"max_steps": 1})]) == 0
    assert ("a fault" in caplog.text) != is_by_chance
