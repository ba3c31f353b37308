"""A run that is killed, stopped or moved goes on as if nothing had happened."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import started
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_sft import files
from lit_sft.__main__ import main
from lit_sft.errors import ConfigError
from lit_sft.runs.folder import newest_checkpoint, unfinished_run
from lit_sft.runs.lock import locked

pytestmark = pytest.mark.slow  # as a whole

WriteConfig = Callable[..., str]

TRAINER = {"max_epochs": 2, "accumulate_grad_batches": 2, "val_check_interval": 2}
DATA = {"num_workers": 2}
TOP_P = {"class_path": "TopP", "init_args": {"max_new_tokens": 4}}


two_processes = pytest.mark.skipif(
    "LIT_SFT_SLOW" not in os.environ, reason="two processes, started again and again, for minutes: set LIT_SFT_SLOW"
)
"""What they test as a user starts it, tests/distributed/test_devices.py does in processes that started already."""


def runs_named(tmp_path: Path, name: str) -> list[Path]:
    return sorted((tmp_path / "runs").glob(f"{name}-*"))


def curves(run: Path, *names: str) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(run))
    events.Reload()
    names = names or ("train/loss", "train/learning_rate", "val/loss")
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in names}


def last(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)  # type: ignore[no-any-return]


def assert_same(whole: Path, resumed: Path) -> None:
    assert curves(whole) == curves(resumed)
    expected, actual = last(whole), last(resumed)
    for name, weight in expected["state_dict"].items():
        assert torch.equal(weight, actual["state_dict"][name]), name
    summaries = [json.loads((run / "summary.json").read_text()) for run in (whole, resumed)]
    assert summaries[0] == summaries[1]


def callbacks(class_name: str, **arguments: Any) -> list[str]:
    return ["--trainer.callbacks", json.dumps([{"class_path": f"fakes.{class_name}", "init_args": arguments}])]


def start(config: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lit_sft", "fit", "--config", config, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path, "tests"])}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_a_stopped_run_saves_and_goes_on_in_its_folder_as_if_it_had_not_stopped(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    """With dropout, sampled answers, accumulation, and a validation that is due or under way."""
    config = write_config(model={"generation": TOP_P}, trainer=TRAINER)
    assert main(["fit", "--config", config, "--name", "whole"]) == 0
    (whole,) = runs_named(tmp_path, "whole")
    last_step = last(whole)["global_step"]
    for name, (asks, step) in {
        "step": ("Ask", last_step - 1),
        "validation": ("AskInValidation", last_step - 1),
        "last": ("Ask", last_step),
    }.items():
        words = ["fit", "--config", config, "--name", name, "--resume", "auto"]
        assert main([*words, *callbacks(asks, step=step)]) == 128 + signal.SIGTERM, name
        (half,) = runs_named(tmp_path, name)
        assert last(half)["global_step"] == step, name
        assert main(words) == 0, name
        assert runs_named(tmp_path, name) == [half]
        assert len(json.loads((half / "manifest.json").read_text())["resumed"]) == 1
        assert curves(whole)["train/loss"] == curves(half)["train/loss"], name
        assert_same(whole, half)


def test_what_is_drawn_in_validation_and_in_sampled_answers_does_not_reach_training(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    """With dropout: the curve and the weights are those of a run that neither validates nor answers."""
    draws = write_config(model={"generation": TOP_P}, trainer=TRAINER, samples={"count": 2})
    assert main(["fit", "--config", draws, "--name", "draws", *callbacks("DrawInValidation")]) == 0
    quiet = write_config(trainer={**TRAINER, "limit_val_batches": 0}, samples={"count": 0})
    assert main(["fit", "--config", quiet, "--name", "quiet"]) == 0
    (draws_run,), (quiet_run,) = (runs_named(tmp_path, name) for name in ("draws", "quiet"))
    assert curves(draws_run)["train/loss"] == curves(quiet_run, "train/loss")["train/loss"]
    for name, weight in last(quiet_run)["state_dict"].items():
        assert torch.equal(weight, last(draws_run)["state_dict"][name]), name


def test_a_run_that_is_killed_at_any_moment_ends_as_one_that_was_not(write_config: WriteConfig, tmp_path: Path) -> None:
    trainer = {**TRAINER, "val_check_interval": 4}  # a checkpoint after each step takes its time
    config = write_config(data=DATA, trainer=trainer, checkpoints={"every_minutes": 0})
    assert main(["fit", "--config", config, "--name", "whole"]) == 0
    for step, where in ((2, "Kill"), (4, "KillInSave")):
        words = ["fit", "--config", config, "--name", "half", "--resume", "auto", *callbacks(where, step=step)]
        code, said = started.run(words, log=tmp_path / "log")
        assert code == -signal.SIGKILL, said
    assert main(["fit", "--config", config, "--name", "half", "--resume", "auto"]) == 0
    (half,) = runs_named(tmp_path, "half")
    assert_same(runs_named(tmp_path, "whole")[0], half)


@two_processes
def test_the_others_end_when_a_process_dies(write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config(trainer={"max_epochs": 10000, "devices": 2, "strategy": "ddp", "val_check_interval": 1.0})
    for victim in ("first", "second"):
        run = start(config, "--name", victim, *callbacks("Kill", step=2, rank=int(victim == "second")))
        # The one that lives would hold the pipe open.
        run.communicate(timeout=400)
        assert run.returncode != 0


@two_processes
def test_all_processes_stop_in_one_step_and_go_on_together(write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config(trainer={"devices": 2, "strategy": "ddp"})
    for options in ([], callbacks("Ask", step=2, rank=1)):
        run = start(config, "--name", "half" if options else "whole", *options)
        _, said = run.communicate(timeout=400)
        assert run.returncode == (128 + signal.SIGTERM if options else 0), said
    (half,) = runs_named(tmp_path, "half")
    assert last(half)["global_step"] == 2
    assert len(last(half)["random_states"]) == 2
    resumed = start(config, "--name", "half", "--resume", str(half))
    _, said = resumed.communicate(timeout=400)
    assert resumed.returncode == 0, said
    expected, actual = curves(runs_named(tmp_path, "whole")[0]), curves(half)
    for name in expected:
        assert actual[name] == pytest.approx(expected[name], abs=1e-6)


def test_the_configuration_wins_over_the_stored_optimizer_and_the_moments_are_kept(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    assert main(["fit", "--config", write_config(trainer={"max_steps": 2}), "--name", "a"]) == 0
    (run,) = runs_named(tmp_path, "a")
    before = last(run)["optimizer_states"][0]
    changes = [
        *("--trainer.max_steps", "3", "--model.init_args.optimizer.init_args.weight_decay", "0.5"),
        *(
            "--model.init_args.optimizer.init_args.lr",
            "0.0",
            "--model.init_args.optimizer.init_args.betas",
            "[0.5,0.7]",
        ),
    ]
    assert main(["fit", "--resume", str(run), *changes]) == 0
    after = last(run)["optimizer_states"][0]
    assert (after["param_groups"][0]["weight_decay"], after["param_groups"][0]["lr"]) == (0.5, 0.0)
    assert list(after["param_groups"][0]["betas"]) == [0.5, 0.7]
    assert [state["step"] for state in after["state"].values()] == [3.0] * len(before["state"])


def test_another_optimizer_is_refused(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", write_config(trainer={"max_steps": 1}), "--name", "a"]) == 0
    sgd = write_config(model={"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}})
    assert main(["fit", "--config", sgd, "--resume", str(runs_named(tmp_path, "a")[0])]) == 2
    assert "the checkpoint's optimizer is AdamW, but that of the configuration is SGD" in capsys.readouterr().err


def test_resume_auto_says_what_it_looked_for(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(trainer={"max_steps": 1})
    assert main(["fit", "--config", config, "--name", "a", "--resume", "auto"]) == 0
    assert main(["fit", "--config", config, "--name", "a", "--resume", "auto"]) == 2
    assert "looked for a run a-DATE-TIME without summary.json" in capsys.readouterr().err
    assert main(["fit", "--resume", "auto"]) == 2
    assert "--config" in capsys.readouterr().err
    assert main(["fit", "--config", config, "--resume", str(tmp_path)]) == 2
    assert "holds no whole training checkpoint" in capsys.readouterr().err


HOLDER = """
import os, sys, time
from pathlib import Path
from lit_sft.runs.lock import locked
with locked(Path(sys.argv[1])):
    worker = os.fork()
    if worker:
        print(worker, flush=True)
    time.sleep(300)
"""


def test_a_run_on_which_another_process_works_is_refused_until_that_one_is_gone(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", write_config(trainer={"max_steps": 1}), "--name", "a"]) == 0
    (run,) = runs_named(tmp_path, "a")
    files = {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()}
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        assert main(["fit", "--resume", str(run)]) == 2
        assert f"another process is using {run}" in capsys.readouterr().err
        assert {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()} == files
        holder.kill()
        holder.wait()
        assert main(["fit", "--resume", str(run)]) == 0  # although the worker of the killed process still lives
    finally:
        holder.kill()
        os.kill(worker, signal.SIGKILL)
        holder.stdout.close()


def test_a_disk_that_knows_no_locks_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", unsupported)
    with locked(tmp_path):
        assert "cannot be locked (No locks available)" in caplog.text


CONNECTED = """
import atexit, sys
from pathlib import Path
def threads():
    return {file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")}
atexit.register(lambda: print(*threads()))  # what is registered first comes last
from lit_sft.__main__ import main
code = main(sys.argv[1:])
assert any("gloo" in name for name in threads())
sys.exit(code)
"""


def test_no_thread_of_a_process_group_outlives_the_interpreter(write_config: WriteConfig) -> None:
    words = ["fit", "--config", write_config(trainer={"max_steps": 1, "strategy": "ddp", "devices": 1})]
    ended = subprocess.run([sys.executable, "-c", CONNECTED, *words], capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, ended.stderr
    assert "gloo" not in ended.stdout.splitlines()[-1]


def test_only_runs_of_the_same_name_are_looked_at(tmp_path: Path) -> None:
    for name in ("a-20260101-000000", "a-b-20260102-000000", "a-20260101-000000-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    assert unfinished_run(tmp_path, "a") == tmp_path / "a-20260101-000000-2"
    assert unfinished_run(tmp_path, "b") is None
    for name in ("a-20260101-000000", "a-20260101-000000-2"):
        (tmp_path / name / "summary.json").touch()
    with pytest.raises(ConfigError, match="all 2 are finished, a-20260101-000000-2 last"):
        unfinished_run(tmp_path, "a")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_that_is_resumed_is_kept_whatever_fails(write_config: WriteConfig, tmp_path: Path) -> None:
    assert main(["fit", "--config", write_config(trainer={"max_steps": 2}), "--name", "a"]) == 0
    (run,) = runs_named(tmp_path, "a")
    (run / "config.yaml").unlink()
    (run / "notes.txt").write_text("mine")
    before = snapshot(run)
    typo = ["--data.init_args.validation_fraction", "7"]
    assert main(["fit", "--config", write_config(), "--resume", str(run), *typo]) == 2
    missing = write_config(data={"corpora": [{"class_path": "Belle", "init_args": {"path": "nowhere.json"}}]})
    assert main(["fit", "--config", missing, "--resume", str(run)]) == 2
    assert snapshot(run) == before


def test_a_refused_resume_changes_nothing(write_config: WriteConfig, tmp_path: Path) -> None:
    assert main(["fit", "--config", write_config(trainer={"max_steps": 2}), "--name", "a"]) == 0
    (run,) = runs_named(tmp_path, "a")
    before = snapshot(run)
    rank = ["--model.init_args.tuning.init_args.rank", "2"]
    optimizer = ["--model.init_args.optimizer", "torch.optim.SGD", "--model.init_args.optimizer.lr", "0.1"]
    for options in (rank, optimizer):
        assert main(["fit", "--resume", str(run), "--trainer.max_steps", "4", *options]) == 2
        assert snapshot(run) == before
    assert main(["fit", "--resume", str(run), "--trainer.max_steps", "4"]) == 0
    assert "max_steps: 4" in (run / "config.yaml").read_text()


def test_a_configuration_is_never_half_written(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["fit", "--config", write_config(trainer={"max_steps": 2}), "--name", "a"]) == 0
    (run,) = runs_named(tmp_path, "a")
    before = (run / "config.yaml").read_bytes()

    flush = files._flush
    torn: list[str] = []

    def tear(path: Path) -> None:
        if path.name.startswith("config.yaml"):
            torn.append(path.read_text(encoding="utf-8"))
            raise KeyboardInterrupt
        flush(path)

    monkeypatch.setattr(files, "_flush", tear)
    assert main(["fit", "--resume", str(run), "--trainer.max_steps", "4"]) != 0
    assert "max_steps: 4" in torn[0]
    assert (run / "config.yaml").read_bytes() == before


def test_a_run_does_not_go_on_within_an_optimizer_step(write_config: WriteConfig, tmp_path: Path) -> None:
    trainer = {"max_steps": 4, "accumulate_grad_batches": 2, "val_check_interval": 3}
    config = write_config(trainer={**trainer, "max_epochs": 1}, data=DATA)
    assert main(["fit", "--config", config, "--name", "a", *callbacks("Interrupt", step=2)]) == 130
    (run,) = runs_named(tmp_path, "a")
    best = run / "checkpoints" / "best.ckpt"
    assert torch.load(best, weights_only=True)["is_within_step"]
    assert newest_checkpoint(run) in {None, run / "checkpoints" / "last.ckpt"}
    (run / "checkpoints" / "last.ckpt").unlink(missing_ok=True)
    assert newest_checkpoint(run) is None
    assert main(["fit", "--config", config, "--name", "b", "--ckpt_path", str(best)]) == 2
