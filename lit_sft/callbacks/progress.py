"""One bar for the whole run, with the time left and the numbers of the last step."""

from __future__ import annotations

import sys
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

SHOWN = {
    "train/loss": ("loss", ".3f"),
    "train/token_accuracy": ("accuracy", ".3f"),
    "train/learning_rate": ("lr", ".1e"),
    "train/gradient_norm": ("gradient", ".2f"),
    "speed/tokens_per_second": ("tok/s", ".0f"),
    "speed/supervised_tokens_per_second": ("supervised/s", ".0f"),
    "speed/padding_share": ("padding", ".0%"),
    "speed/memory_gib": ("GiB", ".1f"),
    "val/loss": ("val", ".3f"),
}
"""Metric -> its short name and format in the bar."""


class RunProgress(ProgressBar):
    """Optimizer steps of the run, or batches of a validation, test or prediction; on standard error."""

    def __init__(self) -> None:
        super().__init__()
        self._is_enabled = True
        self._bar: tqdm[Any] | None = None

    def disable(self) -> None:
        """Lightning calls it on all processes but the first."""
        self._is_enabled = False

    def enable(self) -> None:
        """The opposite."""
        self._is_enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the step the run stands at."""
        self._open("training", "step", trainer.estimated_stepping_batches, done=trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move to the step reached."""
        if self._bar is not None and trainer.global_step > self._bar.n:
            self._bar.set_postfix_str(_postfix(trainer.callback_metrics), refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the full bar on the screen."""
        self._close()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar over batches of prompts."""
        self._open("predicting", "batch", sum(trainer.num_predict_batches))

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """One batch more."""
        if self._bar is not None:
            self._bar.update()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the full bar on the screen."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the line, so that the message stands on its own."""
        self._close()

    def _open(self, description: str, unit: str, total: float, done: int = 0) -> None:
        if not self._is_enabled:
            return
        # A log file gets a line each ten seconds instead of a bar that is drawn over.
        interval = 0.2 if sys.stderr.isatty() else 10.0
        bar_total = None if total == float("inf") else int(total)
        self._bar = tqdm(
            desc=description, unit=unit, total=bar_total, initial=done, mininterval=interval, dynamic_ncols=True
        )

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _postfix(metrics: dict[str, Any]) -> str:
    shown = [f"{name} {float(metrics[key]):{spec}}" for key, (name, spec) in SHOWN.items() if key in metrics]
    return ", ".join(shown)
