"""One bar for the whole run, with the time left and the numbers of the last step."""

from __future__ import annotations

import sys
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

SHOWN = {
    "train/loss": ("loss", ".3g"),
    "train/token_accuracy": ("acc", ".2f"),
    "train/learning_rate": ("lr", ".0e"),
    "train/gradient_norm": ("grad", ".2g"),
    "speed/tokens_per_second": ("tok/s", "si"),
    "speed/supervised_tokens_per_second": ("sup/s", "si"),
    "speed/padding_share": ("pad", ".0%"),
    "speed/memory_gib": ("GiB", ".1f"),
    "val/loss": ("val", ".3g"),
}
"""Metric -> its short name and format in the bar; they fit into 120 columns."""

FORMAT = "{desc} {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"


class RunProgress(ProgressBar):
    """Optimizer steps of the run, and batches of each validation, test or prediction; on standard error."""

    def __init__(self) -> None:
        super().__init__()
        self._is_enabled = True
        self._steps: tqdm[Any] | None = None
        self._batches: tqdm[Any] | None = None

    def disable(self) -> None:
        """Lightning calls it on all processes but the first."""
        self._is_enabled = False

    def enable(self) -> None:
        """The opposite."""
        self._is_enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the step the run stands at."""
        self._steps = self._open("training", trainer.estimated_stepping_batches, done=trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move to the step reached."""
        if self._steps is not None and trainer.global_step > self._steps.n:
            self._steps.set_postfix_str(_postfix(trainer.callback_metrics), refresh=False)
            self._steps.update(trainer.global_step - self._steps.n)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the full bar on the screen."""
        self._close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar that goes when the validation ends."""
        num_batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._batches = self._open("validating", sum(num_batches), leaves=False)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar over batches of the test corpora."""
        self._batches = self._open("testing", sum(trainer.num_test_batches))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar over batches of prompts."""
        self._batches = self._open("predicting", sum(trainer.num_predict_batches))

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """One batch more."""
        self._count_batch()

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """One batch more."""
        self._count_batch()

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """One batch more."""
        self._count_batch()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make room again."""
        self._close_batches()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the full bar on the screen."""
        self._close_batches()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the full bar on the screen."""
        self._close_batches()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the line, so that the message stands on its own."""
        self._close_batches()
        self._close()

    def _open(self, description: str, total: float, *, done: int = 0, leaves: bool = True) -> tqdm[Any] | None:
        if not self._is_enabled:
            return None
        # A log file gets a line each ten seconds instead of a bar that is drawn over.
        interval = 0.2 if sys.stderr.isatty() else 10.0
        return tqdm(
            desc=description,
            total=None if total == float("inf") else int(total),
            initial=done,
            mininterval=interval,
            leave=leaves,
            dynamic_ncols=True,
            bar_format=FORMAT,
        )

    def _count_batch(self) -> None:
        if self._batches is not None:
            self._batches.update()

    def _close_batches(self) -> None:
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _close(self) -> None:
        if self._steps is not None:
            self._steps.close()
            self._steps = None


def _postfix(metrics: dict[str, Any]) -> str:
    shown = [f"{name} {_number(float(metrics[key]), spec)}" for key, (name, spec) in SHOWN.items() if key in metrics]
    return " ".join(shown)


def _number(value: float, spec: str) -> str:
    return tqdm.format_sizeof(value) if spec == "si" else f"{value:{spec}}"
