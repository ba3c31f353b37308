"""Batches made by hand, a loader that does not say how many there are, and a logger that keeps what it is told."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader, IterableDataset

from lit_sft.conversation import IGNORE_INDEX, Example
from lit_sft.data.batch import Batch
from lit_sft.data.collate import collate
from lit_sft.stages.sft import SFT


class Stream(IterableDataset[Batch]):
    """The same batches in each epoch; in the first from `start` on, as after a resume."""

    def __init__(self, batches: Sequence[Batch], start: int = 0) -> None:
        self.batches = batches
        self.start = start

    def __iter__(self) -> Iterator[Batch]:
        start, self.start = self.start, 0
        return iter(self.batches[start:])


def stream_of(batches: Sequence[Batch], start: int = 0) -> DataLoader[Batch]:
    return DataLoader(Stream(batches, start), batch_size=None)


def batches_of(count: int) -> list[Batch]:
    """Batches of one example, each with the share of the epoch that is done with it."""
    return [collate([[example(index)]], 0, epoch_progress=(index + 1) / count) for index in range(count)]


def example(index: int, corpus: int = 0) -> Example:
    """Three to five tokens."""
    ids = [20 + index, 30, 31, 32 + index, 40][: 3 + index % 3]
    return Example(ids, [IGNORE_INDEX, *ids[1:]], f"stream:{index}", corpus=corpus)


class Notes(Logger):
    """Every value with the step it was logged for."""

    name = "notes"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[tuple[int | None, float]]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.found.setdefault(name, []).append((step, value))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Of no interest."""


def trainer_of(*callbacks: Callback, **options: Any) -> Trainer:
    silent = {"logger": False, "enable_progress_bar": False}
    quiet = {"enable_checkpointing": False, "enable_model_summary": False, "log_every_n_steps": 1}
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **{**silent, **quiet, **options})


def fit(stage: SFT, loader: Any, *callbacks: Callback, ckpt_path: Path | None = None, **options: Any) -> Trainer:
    """Train on the batches, without validation."""
    trainer = trainer_of(*callbacks, **{"limit_val_batches": 0, **options})
    trainer.fit(stage, loader, loader, ckpt_path=ckpt_path, weights_only=True)
    return trainer
