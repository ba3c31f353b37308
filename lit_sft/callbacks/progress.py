"""One bar for the whole run, with the time left and the numbers of the last step."""

from __future__ import annotations

import math
import sys
import time
from datetime import datetime
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from lit_sft.bars import bar, on_terminal
from lit_sft.stages._base import Stage, is_logged

SHOWN = {
    "train/loss": ("loss", ".3g"),
    "val/loss": ("val", ".3g"),
    "train/reward": ("reward", ".3g"),
    "val/reward": ("val reward", ".3g"),
    "train/objective/kl": ("kl", ".2g"),
    "speed/memory_gib": ("GiB", ".1f"),
    "speed/rollout_tokens_per_second": ("drawn tok/s", "si"),
    "speed/tokens_per_second": ("tok/s", "si"),
    "train/learning_rate": ("lr", ".0e"),
    "train/token_accuracy": ("acc", ".2f"),
    "train/accuracy": ("acc", ".2f"),
    "train/rewards/accuracies": ("acc", ".2f"),
    "train/gradient_norm": ("grad", ".2g"),
    "speed/supervised_tokens_per_second": ("sup/s", "si"),
    "speed/padding_share": ("pad", ".0%"),
}
"""Metric -> its short name and format; what matters most first, for a narrow terminal cuts the end off."""

COUNTED = "{desc} {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
UNCOUNTED = "{desc} {percentage:3.0f}% [{elapsed}<{remaining}]{postfix}"


class RunProgress(ProgressBar):
    """Optimizer steps of the run, and batches of each validation, test or prediction; on standard error.

    Where nobody knows how many steps the run will have, the bar measures the share of it that is done. A file gets a
    line for each step that is logged instead.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_enabled = True
        self._steps: tqdm[Any] | None = None
        self._is_counted = True
        self._global_step = 0
        self._described = -math.inf
        self._last_line = 0
        self._began = (0.0, 0.0)
        """When training began, and at which share of the run."""
        self._batches: tqdm[Any] | None = None
        self._num_answers = 0
        self._num_tokens = 0

    def disable(self) -> None:
        """Lightning calls it on all processes but the first."""
        self._is_enabled = False

    def enable(self) -> None:
        """The opposite."""
        self._is_enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: Stage) -> None:  # type: ignore[override]
        """Open the bar at the step the run stands at."""
        self._global_step = trainer.global_step
        self._is_counted = trainer.num_training_batches != float("inf")
        self._began = time.monotonic(), self._share(trainer, pl_module)
        if not on_terminal():
            return
        if self._is_counted:
            self._steps = self._open("training", trainer.estimated_stepping_batches, done=trainer.global_step)
        else:
            self._steps = self._open("training", 1, done=pl_module.progress, form=UNCOUNTED)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: Stage, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move to the step reached."""
        if trainer.global_step == self._global_step:
            return
        self._global_step = trainer.global_step
        if not on_terminal() and is_logged(trainer, trainer.global_step):
            self._write_line(trainer, pl_module, trainer.current_epoch + batch.epoch_progress)
        if self._steps is None:
            return
        # Reading a metric waits for the device: only where it is about to be drawn.
        if time.monotonic() - self._described >= self._steps.mininterval:
            self._describe(trainer)
        self._steps.update((trainer.global_step if self._is_counted else pl_module.progress) - self._steps.n)

    def on_train_end(self, trainer: Trainer, pl_module: Stage) -> None:  # type: ignore[override]
        """Leave the full bar on the screen, with the numbers of the last step."""
        if self._steps is not None:
            self._describe(trainer)
        elif self._last_line != trainer.global_step and not on_terminal():
            self._write_line(trainer, pl_module, trainer.current_epoch)
        self._close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar that goes when the validation ends."""
        num_batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._batches = self._open("validating", sum(num_batches), leaves=False)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar over batches of the test corpora."""
        self._batches = self._open("testing", sum(trainer.num_test_batches))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar over batches of prompts, which take about equally long: of few long ones or many short ones."""
        self._num_answers = self._num_tokens = 0
        self._batches = self._open("predicting", sum(trainer.num_predict_batches))

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """One batch more."""
        self._count_batch()

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """One batch more."""
        self._count_batch()

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: list[dict[str, Any]], *args: Any, **kwargs: Any
    ) -> None:
        """One batch more, of each process; tokens a second are those of all answers so far."""
        if self._batches is None:
            return
        self._num_answers += len(outputs)
        self._num_tokens += sum(row.get("answer_tokens", row.get("tokens", 0)) for row in outputs)
        speed = _number(self._num_tokens / self._batches.format_dict["elapsed"], "si")
        self._batches.set_postfix_str(f"{self._num_answers} answers {speed} tok/s", refresh=False)
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

    def _open(
        self, description: str, total: float, *, done: float = 0, leaves: bool = True, form: str = COUNTED
    ) -> tqdm[Any] | None:
        if not self._is_enabled:
            return None
        return bar(
            desc=description,
            total=None if total == float("inf") else int(total),
            initial=done,
            leave=leaves,
            dynamic_ncols=True,
            bar_format=form,
        )

    def _share(self, trainer: Trainer, stage: Stage) -> float:
        return trainer.global_step / trainer.estimated_stepping_batches if self._is_counted else stage.progress

    def _write_line(self, trainer: Trainer, stage: Stage, epoch: float) -> None:
        if not self._is_enabled:
            return
        self._last_line = trainer.global_step
        began, share_before = self._began
        share, seconds = self._share(trainer, stage), time.monotonic() - began
        left = seconds * (1 - share) / (share - share_before) if share > share_before else 0.0
        total = f"/{trainer.estimated_stepping_batches:.0f}" if self._is_counted else ""
        numbers = _postfix(trainer.callback_metrics)
        now = datetime.now().astimezone().strftime("%m-%d %H:%M:%S")
        eta = tqdm.format_interval(left)
        print(  # noqa: T201
            f"{now} step {trainer.global_step}{total} {share:.0%} epoch {epoch:.2f} {numbers} eta {eta}",
            file=sys.stderr,
        )

    def _describe(self, trainer: Trainer) -> None:
        """Put the numbers of the step behind the bar, to be seen when it is drawn next."""
        assert self._steps is not None
        self._described = time.monotonic()
        step = "" if self._is_counted else f"step {trainer.global_step} "
        self._steps.set_postfix_str(step + _postfix(trainer.callback_metrics), refresh=False)

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
