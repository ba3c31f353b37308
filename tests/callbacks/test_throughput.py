"""Speed and waiting, on a clock that only moves when the test says so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from streams import Notes, batches_of, trainer_of
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset

from lit_sft.callbacks import throughput
from lit_sft.callbacks.throughput import Throughput
from lit_sft.data.batch import Batch
from lit_sft.losses.cross_entropy import TokenTotals
from lit_sft.stages.schedules import Constant
from lit_sft.stages.sft import SFT
from lit_sft.tuning.full import Full


class Clock:
    """Stands in for the time module."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


def run(folder: Path, clock: Clock, **options: Any) -> dict[str, list[float]]:
    """Two epochs of two batches; a batch is loaded in 1 s, trained on in 3 s and measured in 50 s."""

    class SlowData(Dataset[Batch]):
        def __getitem__(self, index: int) -> Batch:
            clock.now += 1.0
            return batches_of(2)[index]

        def __len__(self) -> int:
            return 2

    class SlowStage(SFT):
        def forward(self, batch: Batch) -> TokenTotals:
            clock.now += 3.0 if torch.is_grad_enabled() else 50.0
            return super().forward(batch)

    notes = Notes()
    stage = SlowStage(
        checkpoint=str(folder), tuning=Full(), optimizer=lambda groups: SGD(groups, lr=0.0), schedule=Constant(0.0)
    )
    trainer = trainer_of(Throughput(), logger=notes, max_epochs=2, **options)
    held_out: DataLoader[Any] = DataLoader(batches_of(1), batch_size=None)  # type: ignore[arg-type]  # a list is a dataset
    trainer.fit(stage, DataLoader(SlowData(), batch_size=None), held_out)
    return {name: [value for _, value in found] for name, found in notes.found.items()}


def test_the_time_between_batches_is_waiting(tiny_folder: Path, clock: Clock) -> None:
    assert run(tiny_folder, clock, limit_val_batches=0)["speed/data_wait_share"] == [0.25] * 4


def test_it_is_measured_since_the_last_log(tiny_folder: Path, clock: Clock) -> None:
    found = run(tiny_folder, clock, limit_val_batches=0, log_every_n_steps=2)
    assert found["speed/data_wait_share"] == [0.25] * 2


def test_validation_is_neither_waiting_nor_training(tiny_folder: Path, clock: Clock) -> None:
    found = run(tiny_folder, clock, val_check_interval=1)
    # The batch after a validation was loaded meanwhile, for all that one knows.
    assert found["speed/data_wait_share"] == [0.25, 0.0, 0.25, 0.0]
    tokens = [batch.num_tokens for batch in batches_of(2)] * 2
    assert found["speed/tokens_per_second"] == [count / 4 for count in tokens]


def test_without_an_interval_of_logging_nothing_is_logged(tiny_folder: Path, clock: Clock) -> None:
    found = run(tiny_folder, clock, log_every_n_steps=0)
    assert found
    assert not [name for name in found if name.startswith(("speed/", "train/"))]
