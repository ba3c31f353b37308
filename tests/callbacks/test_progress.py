"""What the bar of a run says."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, Trainer
from streams import batches_of, fit, stream_of
from torch.utils.data import DataLoader
from transformers.utils.logging import disable_progress_bar

from lit_sft import bars
from lit_sft.callbacks import progress
from lit_sft.callbacks.progress import RunProgress
from lit_sft.stages.sft import SFT
from lit_sft.tuning.lora import LoRA

LastBar = Callable[..., str]


@pytest.fixture
def last_bar(tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> LastBar:
    """Train on the batches of a loader at a terminal; the bar as it was drawn last."""
    monkeypatch.setattr(bars, "on_terminal", lambda: True)
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    monkeypatch.setattr(bars, "ON_A_TERMINAL", 10.0)

    def run(loader: Any, *callbacks: Callback, **options: Any) -> str:
        stage = SFT(checkpoint=str(tiny_folder), tuning=LoRA(rank=2))
        fit(stage, loader, RunProgress(), *callbacks, enable_progress_bar=True, **options)
        drawn = [part for part in re.split(r"[\r\n]", capsys.readouterr().err) if part.startswith("training")]
        return drawn[-1].rstrip()

    return run


def test_a_bar_counts_the_steps_where_their_number_is_known(last_bar: LastBar) -> None:
    loader: DataLoader[Any] = DataLoader(batches_of(4), batch_size=None)  # type: ignore[arg-type]  # a list is a dataset
    bar = last_bar(loader, max_epochs=2, limit_train_batches=3)
    assert re.fullmatch(r"training 100% 6/6 \[00:\d\d<00:00\], loss .* grad .*", bar)


def test_numbers_are_read_only_when_they_are_drawn(last_bar: LastBar, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading one waits for the device."""
    reads: list[int] = []

    def numbers(metrics: Any) -> str:
        reads.append(len(metrics))
        return "numbers"

    monkeypatch.setattr(progress, "_postfix", numbers)
    assert last_bar(stream_of(batches_of(4)), max_epochs=5).endswith("step 20 numbers")
    assert len(reads) == 2, "after the first step and at the end"


def test_a_file_gets_a_plain_line_for_each_step_that_is_logged(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disable_progress_bar()  # of transformers, as the command line does
    stage = SFT(checkpoint=str(tiny_folder), tuning=LoRA(rank=2))
    loader: DataLoader[Any] = DataLoader(batches_of(4), batch_size=None)  # type: ignore[arg-type]
    fit(stage, loader, RunProgress(), enable_progress_bar=True, max_epochs=2, log_every_n_steps=3)
    written = capsys.readouterr().err
    assert "\r" not in written
    assert "\x1b" not in written
    steps = re.findall(r"^\d\d-\d\d [\d:]{8} step (\d)/8 +\d+% epoch [\d.]+ loss .* eta [\d:]+$", written, re.MULTILINE)
    assert steps == ["3", "6", "8"]


def test_what_matters_most_is_not_cut_off_at_80_columns() -> None:
    numbers = {"train/loss": 1.234, "val/loss": 1.345, "speed/memory_gib": 61.2, "speed/tokens_per_second": 12345.0}
    of_policies = {"train/reward", "val/reward", "train/objective/kl", "speed/rollout_tokens_per_second"}
    others = dict.fromkeys(progress.SHOWN.keys() - of_policies, 0.123)
    line = progress.COUNTED.format(
        desc="training",
        percentage=55,
        n_fmt=12345,
        total_fmt=22222,
        elapsed="10:00:00",
        remaining="09:00:00",
        postfix="",
    )
    assert "GiB 61.2" in f"{line}, {progress._postfix({**others, **numbers})}"[:80]


def test_a_bar_in_a_file_is_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "IN_A_FILE", 1e-9)
    with bars.bar(total=3, desc="reading") as shown:
        for _ in range(3):
            shown.update()
    written = capsys.readouterr().err.splitlines()
    assert len(written) >= 2
    assert all(line.startswith("reading:") for line in written)
    assert "3/3" in written[-1]


def test_a_bar_shows_the_share_of_the_run_where_nobody_knows_their_number(last_bar: LastBar) -> None:
    bar = last_bar(stream_of(batches_of(4)), max_epochs=2)
    assert re.fullmatch(r"training 100% \[00:\d\d<00:00\], step 8 loss .* grad .*", bar)


def test_a_resumed_run_goes_on_from_its_share(last_bar: LastBar, tmp_path: Path) -> None:
    batches, checkpoint = batches_of(4), tmp_path / "x.ckpt"

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 2:
                trainer.save_checkpoint(checkpoint)
                trainer.should_stop = True

    bar = last_bar(stream_of(batches), Stop(), max_epochs=1)
    assert re.match(r"training  50% \[00:\d\d<.*\], step 2 ", bar)
    starts: list[float] = []

    class Start(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            starts.append(pl_module.progress)

    last_bar(stream_of(batches, 2), Start(), max_epochs=1, ckpt_path=checkpoint)
    assert starts == [0.5]
