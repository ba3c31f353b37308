"""When a run saves, what it keeps, and how it stops when it is asked to.

`last.ckpt` is where training goes on, `best.ckpt` the state that validated best. Every checkpoint stands
between two optimizer steps, so that a resumed run is the same as one that was never interrupted.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lit_sft.callbacks.checkpoint_file import link
from lit_sft.callbacks.signals import Signals
from lit_sft.errors import ConfigError, Stopped
from lit_sft.runs.folder import BEST_CHECKPOINT, LAST_CHECKPOINT, WITHIN_STEP
from lit_sft.stages._base import Stage

log = logging.getLogger(__name__)

COPIES_OF_WEIGHTS = 3
"""What trained and two moments of it: the size of a checkpoint with AdamW."""

GB = 1e9


class Checkpoints(Checkpoint):
    """Saves after each validation, each epoch, every so many minutes, at the end, and when asked to stop.

    Args:
        every_minutes: Training time that a crash may cost: `last.ckpt` is written this often at least.
    """

    def __init__(self, every_minutes: float = 30.0) -> None:
        if every_minutes < 0:
            raise ConfigError(f"checkpoints.every_minutes is {every_minutes}; it must be at least 0")
        self.every_minutes = every_minutes
        self.signals = Signals()
        self._best: float | None = None
        self._saved_step = 0
        self._saved_at = 0.0
        self._is_validation_due = False

    def on_fit_start(self, trainer: Trainer, pl_module: Stage) -> None:  # type: ignore[override]
        """Refuse a disk that is too small, and processes that go on from different places.

        Raises:
            ConfigError: For either.
        """
        share = pl_module.progress
        if trainer.strategy.broadcast(share) != share:
            raise ConfigError(
                f"process {trainer.global_rank} found another checkpoint to resume than the first one: "
                "--runs must lie on a file system that all share"
            )
        if trainer.is_global_zero:
            _check_space(Path(trainer.default_root_dir), pl_module)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's own handlers, which it has just installed, would save elsewhere or talk to other processes."""
        self.signals.listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is something to save."""
        self.signals.listen()
        self.signals.is_training = True
        self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Curves go on at the step they ended at; Lightning's own count of them is not in every checkpoint."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Between two optimizer steps: stop if any process was asked to, save if it is time.

        Raises:
            Stopped: Once the checkpoint is written.
        """
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate():
            return
        signal, is_time = self._agree(trainer)
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None
        is_validation_due = loop._should_check_val_fx(fetcher)
        # A validation or the end of an epoch saves by itself.
        is_time = is_time and not is_validation_due and not loop._num_ready_batches_reached()
        if signal or is_time:
            # Lightning logs a step only after the hook in which it ends.
            trainer._logger_connector.update_train_step_metrics()
        if signal:
            self._stop(trainer, signal, is_validation_due=is_validation_due)
        if is_time:
            self._save(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """A validation may be long: it is left, and done again when the run goes on.

        Raises:
            Stopped: Once the checkpoint is written.
        """
        if not trainer.sanity_checking and not trainer.fit_loop.epoch_loop._should_accumulate():
            signal, _ = self._agree(trainer)
            if signal:
                self._stop(trainer, signal, is_validation_due=True)

    def on_validation_end(self, trainer: Trainer, pl_module: Stage) -> None:  # type: ignore[override]
        """Save; the best so far has two names."""
        if trainer.sanity_checking:
            return
        is_best = self._is_best(trainer, pl_module)
        # Within a step there are gradients that no checkpoint holds: a run goes on from the one before.
        is_within_step = trainer.fit_loop.epoch_loop._should_accumulate()
        folder = Path(trainer.default_root_dir)
        if is_best:
            self._save(trainer, BEST_CHECKPOINT)
        if is_within_step:
            self._saved_at = -math.inf  # with the next step it is time
        elif is_best and trainer.is_global_zero:
            link(folder / BEST_CHECKPOINT, folder / LAST_CHECKPOINT)
        elif not is_best:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if no validation did."""
        if self._saved_step != trainer.global_step:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The end may lie behind the last validation; measuring and exporting must mean the same weights."""
        if self._saved_step != trainer.global_step:
            self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The value by which `best.ckpt` is the best."""
        return {"best_loss": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on comparing with it."""
        self._best = state_dict["best_loss"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """In a folder of its own a run begins without a best checkpoint.

        Raises:
            ConfigError: If the checkpoint stands within an optimizer step.
        """
        if checkpoint.get(WITHIN_STEP):
            raise ConfigError(
                f"{trainer.ckpt_path} was saved within an optimizer step, whose gradients it does not hold: training "
                f"cannot resume from it. Use {LAST_CHECKPOINT} of the run"
            )
        if not (Path(trainer.default_root_dir) / BEST_CHECKPOINT).is_file():
            checkpoint["callbacks"].pop(self.state_key, None)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """State the position in one way, whatever called for the checkpoint."""
        is_over = trainer.fit_loop.epoch_loop._num_ready_batches_reached()
        # There are gradients that no checkpoint holds.
        checkpoint[WITHIN_STEP] = not is_over and trainer.fit_loop.epoch_loop._should_accumulate()
        count_whole_batches(
            checkpoint["loops"]["fit_loop"], is_epoch_over=is_over, is_validation_due=self._is_validation_due
        )

    def _is_best(self, trainer: Trainer, stage: Stage) -> bool:
        """Whether this validation is better than all before, by what the stage is measured by; its value is kept."""
        metric, direction = stage.best_by
        measured = trainer.callback_metrics.get(metric)
        if measured is None:
            return False
        value = float(measured)
        is_best = self._best is None or (value < self._best if direction == "min" else value > self._best)
        if is_best:
            self._best = value
        return is_best

    def _agree(self, trainer: Trainer) -> tuple[int, bool]:
        """The signal that any process received, and whether the first one's clock says that it is time."""
        elapsed = time.monotonic() - self._saved_at
        is_time = trainer.is_global_zero and elapsed >= 60 * self.every_minutes
        if trainer.world_size == 1:
            return self.signals.received, is_time
        own = torch.tensor([self.signals.received, int(is_time)], device=trainer.strategy.root_device)
        signal, is_anyones_time = trainer.strategy.reduce(own, reduce_op="max").tolist()
        return signal, bool(is_anyones_time)

    def _stop(self, trainer: Trainer, signal: int, *, is_validation_due: bool) -> None:
        if self._saved_step != trainer.global_step:
            self._save(trainer, is_validation_due=is_validation_due)
        raise Stopped(signal)

    def _save(self, trainer: Trainer, name: str = LAST_CHECKPOINT, *, is_validation_due: bool = False) -> None:
        # The curves must reach as far as the checkpoint.
        for logger in trainer.loggers:
            logger.save()
        self._is_validation_due = is_validation_due
        trainer.save_checkpoint(Path(trainer.default_root_dir) / name)
        self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()


def count_whole_batches(loop: dict[str, Any], *, is_epoch_over: bool, is_validation_due: bool) -> None:
    """Let Lightning's counts say: so many batches of this epoch are done, nothing is half done.

    Lightning saves what it has counted when it is called, which is other in every hook, and takes some of it up wrongly
    where a loader has no length.

    Args:
        loop: State of the fit loop, changed in place.
        is_epoch_over: Whether the last batch of the epoch is done.
        is_validation_due: Whether a validation must come before the next batch.
    """
    epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    begun = epochs["current"]["ready"]
    is_next_epoch = is_epoch_over and not is_validation_due
    for epoch in (epochs["total"], epochs["current"]):
        done = begun if is_next_epoch else begun - 1
        epoch.update(ready=begun, started=begun, processed=done, completed=done)
    num_batches = {
        "total": batches["total"]["ready"],
        "current": 0 if is_next_epoch else batches["current"]["ready"],
    }
    for which, count in num_batches.items():
        batches[which].update(ready=count, started=count, processed=count, completed=count)
    batches["is_last_batch"] = is_epoch_over and is_validation_due
    # One batch begun and none done is how Lightning knows that it must validate first.
    for progress in ("total", "current"):
        loop["epoch_loop.val_loop.batch_progress"][progress].update(ready=0, started=0, processed=0, completed=0)
    if is_validation_due:
        loop["epoch_loop.val_loop.batch_progress"]["total"].update(ready=1, started=1)
    steps = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"]
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = steps - is_validation_due


def _check_space(folder: Path, stage: Stage) -> None:
    """Is there room for what a run leaves: two checkpoints, a third while it is written, and the export?"""
    weights = sum(p.numel() * p.element_size() for p in stage.parameters() if p.requires_grad)
    size = COPIES_OF_WEIGHTS * weights
    kept = sum((folder / name).is_file() for name in (LAST_CHECKPOINT, BEST_CHECKPOINT))
    needed = (3 - kept) * size + weights
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f"{folder} is on a disk with {free / GB:.3g} GB free, but the run will write {needed / GB:.3g} GB: "
            f"a checkpoint has about {size / GB:.3g} GB. Make room, or give another folder with --runs"
        )
