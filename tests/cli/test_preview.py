"""python -m lit_sft preview, as a user types it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_sft.__main__ import main
from lit_sft.preflight.plan import num_devices

WriteConfig = Callable[..., str]


def test_it_takes_the_configuration_of_a_fit_and_needs_no_weights(
    write_config: WriteConfig, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "no-weights"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("*.bin", "*.safetensors"))
    config = write_config(model={"checkpoint": str(folder)}, trainer={"accumulate_grad_batches": 3, "devices": 2})
    page = tmp_path / "page.html"
    assert main(["preview", "--config", config, "--count", "2", "--html", str(page)]) == 0
    said = capsys.readouterr().out
    assert ["Belle", "20", "20", "0", "0", "0", "0", "0", "16", "4"] in [line.split() for line in said.splitlines()]
    assert "An epoch, 2 devices, 3 micro-batches a step and device" in said
    assert said.count("carry loss") == 2
    assert "\x1b" not in said
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not (tmp_path / "runs").exists()


def test_options_of_the_configuration_can_be_given_behind_it(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data.init_args.max_length", "32", "--data.init_args.packing", "false", "--ids", "true"]
    assert main(["preview", "--config", write_config(), *options]) == 0
    said = capsys.readouterr().out
    assert "Tokens, of 32 at most" in said
    assert "rows filled" not in said
    assert "      id   label  piece" in said


@pytest.mark.slow
def test_it_takes_what_a_run_recorded(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", write_config(trainer={"max_epochs": 1})]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    capsys.readouterr()
    assert main(["preview", "--config", str(run / "config.yaml")]) == 0
    first = capsys.readouterr().out
    assert main(["preview", "--run", str(run)]) == 0
    assert capsys.readouterr().out == first


def test_color_is_for_terminals_that_want_it(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["preview", "--config", config]) == 0
    assert "\x1b[32m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["preview", "--config", config]) == 0
    assert "⟦" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.init_args.max_lenght", "8"], "option 'max_lenght' is not accepted. Did you mean 'max_length'?"),
        (["--model.init_args.checkpoint", "models/none"], "checkpoint folder not found: models/none"),
        (["--model.init_args.prompt_format", "chat"], "family baichuan-7b has no prompt format 'chat'"),
        (["--data.init_args.max_length", "1024"], "data.max_length is 1024, but the model reads 256"),
        (["--count", "-1"], "count is -1; it must be at least 0"),
        (["--count", "many"], "count expects int, not many"),
        (["--html", "none/page.html"], "--html none/page.html cannot be written: No such file or directory"),
    ],
)
def test_a_mistake_gives_one_line(
    options: list[str], message: str, write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preview", "--config", write_config(), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("devices", "accelerator", "number"),
    [("auto", "cpu", 1), (-1, "cpu", 1), (3, "cpu", 3), ("2", "gpu", 2), ([0, 1], "gpu", 2), ("0,1,3", "gpu", 3)],
)
def test_devices_are_counted_as_the_trainer_does(devices: object, accelerator: str, number: int) -> None:
    assert num_devices(devices, accelerator) == number
