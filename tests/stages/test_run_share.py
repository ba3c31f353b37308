"""The learning rate follows the share of the run that is done, however many steps that is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, Trainer
from streams import batches_of, fit, stream_of
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader

from lit_sft.errors import ConfigError
from lit_sft.stages.schedules import Cosine, Schedule
from lit_sft.stages.sft import SFT
from lit_sft.tuning.lora import LoRA

pytestmark = pytest.mark.slow  # as a whole


class Share(Schedule):
    """Shows the progress that it is given."""

    def __init__(self) -> None:
        super().__init__(warmup_fraction=0.0)

    def factor(self, before: float, after: float) -> float:
        return after

    def curve(self, progress: float) -> float:
        raise NotImplementedError


class Rates(Callback):
    """Notes the rate of each optimizer step, and saves a checkpoint after one of them."""

    def __init__(self, save_at: int = 0, file: Path = Path()) -> None:
        self.found: list[float] = []
        self.save_at = save_at
        self.file = file

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        (rate,) = {group["lr"] for group in trainer.optimizers[0].param_groups}
        self.found.append(rate)
        if trainer.global_step == self.save_at:
            trainer.save_checkpoint(self.file)


def stage_of(folder: Path, schedule: Schedule, lr: float = 1.0, optimizer: Any = SGD) -> SFT:
    return SFT(
        checkpoint=str(folder),
        tuning=LoRA(rank=2),
        optimizer=lambda groups: optimizer(groups, lr=lr),
        schedule=schedule,
    )


def shares(folder: Path, loader: Any, **options: Any) -> list[float]:
    rates = Rates()
    stage = stage_of(folder, Share())
    fit(stage, loader, rates, **options)
    assert stage.progress == rates.found[-1]
    return rates.found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_epochs": 2}, [1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8, 1]),
        ({"max_epochs": 1, "accumulate_grad_batches": 3}, [3 / 4, 1]),
        ({"max_steps": 6}, [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1]),
        ({"max_epochs": 2, "limit_train_batches": 2}, [1 / 4, 2 / 4, 3 / 4, 1]),
        ({"max_epochs": 2, "max_steps": 3}, [1 / 3, 2 / 3, 1]),
        ({"max_epochs": 1, "max_steps": 50}, [1 / 4, 2 / 4, 3 / 4, 1]),
    ],
    ids=str,
)
def test_the_share_is_that_of_what_ends_the_run_first_and_its_last_step_has_one(
    tiny_folder: Path, options: dict[str, Any], expected: list[float]
) -> None:
    assert shares(tiny_folder, stream_of(batches_of(4)), **options) == pytest.approx(expected)


def test_a_fraction_of_the_batches_counts_as_the_epoch(tiny_folder: Path) -> None:
    loader: DataLoader[Any] = DataLoader(batches_of(4), batch_size=None)  # type: ignore[arg-type]  # a list is a dataset
    assert shares(tiny_folder, loader, max_epochs=1, limit_train_batches=0.5) == [1 / 2, 1]


@pytest.mark.parametrize("step", [3, 4, 6])
@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_steps": 10}], ids=str)
def test_a_resumed_run_has_the_rates_of_a_whole_one_and_the_base_rate_of_the_configuration(
    tiny_folder: Path, tmp_path: Path, step: int, limits: dict[str, Any]
) -> None:
    """Saved in the middle of the first epoch of four steps, at its end, in the middle of the second."""
    batches, checkpoint = batches_of(4), tmp_path / "x.ckpt"
    whole, resumed = Rates(step, checkpoint), Rates()
    fit(stage_of(tiny_folder, Cosine(0.3), 0.5, AdamW), stream_of(batches), whole, **limits)
    stage = stage_of(tiny_folder, Cosine(0.3), 0.25, AdamW)
    fit(stage, stream_of(batches, step % 4), resumed, ckpt_path=checkpoint, **limits)
    assert [2 * rate for rate in resumed.found] == whole.found[step:]


def test_an_epoch_that_turns_out_longer_than_it_was_thought_ends_at_one(tiny_folder: Path) -> None:
    batches = [replace(batch, epoch_progress=2 * batch.epoch_progress) for batch in batches_of(3)]
    assert shares(tiny_folder, stream_of(batches), max_epochs=1) == pytest.approx([2 / 3, 1, 1])


def test_a_run_without_an_end_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match="set trainer.max_epochs or max_steps"):
        shares(tiny_folder, stream_of(batches_of(1)), max_epochs=-1)
