"""The HParams tab of TensorBoard: what a run was made of, beside what came of it."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from lit_sft.data.datamodule import SFTData
from lit_sft.stages._base import Stage

RESULTS = {f"val_before/{name}": f"val/{name}" for name in ("loss", "perplexity", "token_accuracy")}
"""Curve of what was measured before training, one point, and the curve whose latest point stands beside it."""


class HyperParameters(Callback):
    """Names the few choices by which runs differ, and the curves whose latest points are their results."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Not at the end: runs at work are compared too. The results are the curves themselves, as they grow."""
        if not trainer.is_global_zero or not isinstance(pl_module, Stage):
            return
        results = [name for pair in RESULTS.items() for name in pair]
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                # The logger's own log_hyperparams would add a point to each curve.
                for part in hparams(choices(trainer, pl_module), dict.fromkeys(results, 0.0)):
                    logger.experiment._get_file_writer().add_summary(part)


def choices(trainer: Trainer, stage: Stage) -> dict[str, str | float | bool]:
    """What one compares runs by, flat; nothing for options that are not set."""
    (optimizer, *_) = trainer.optimizers
    data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it, but does not declare it
    accumulation, devices = trainer.accumulate_grad_batches, trainer.world_size
    found: dict[str, Any] = {
        "family": stage.checkpoint.family.name,
        "checkpoint": stage.checkpoint.path.name,
        "tuning": type(stage.tuning).__name__,
        **vars(stage.tuning),
        "optimizer": type(optimizer).__name__,
        "lr": optimizer.defaults["lr"],
        "schedule": type(stage.schedule).__name__,
        "precision": str(trainer.precision),
        "devices": devices,
        "max_epochs": trainer.max_epochs,
        "max_steps": trainer.max_steps,
    }
    if isinstance(data, SFTData):
        found |= {
            "corpora": ", ".join(type(corpus).__name__ for corpus in data.corpora),
            "rows_per_step": data.batching.num_rows * accumulation * devices,
            "max_length": data.batching.row_length,
            "packing": data.batching.packing,
            "seed": data.seed,
        }
    return {key: value for key, value in found.items() if isinstance(value, str | int | float | bool) and value != -1}
