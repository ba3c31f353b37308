"""The HParams tab of TensorBoard, the settings of other loggers: what a run was made of, beside what came of it."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from lit_sft.callbacks._loggers import log_choices
from lit_sft.data._base import CorpusData
from lit_sft.stages._base import Stage


def results(stage: Stage) -> dict[str, str]:
    """Curve of what was measured before training, one point, and the curve whose latest point stands beside it."""
    return {f"val_before/{curve.removeprefix('val/')}": curve for curve in stage.shown_metrics}


class HyperParameters(Callback):
    """Names the few choices by which runs differ, and the curves whose latest points are their results."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Not at the end: runs at work are compared too. The results are the curves themselves, as they grow."""
        if not trainer.is_global_zero or not isinstance(pl_module, Stage):
            return
        named = [name for pair in results(pl_module).items() for name in pair]
        log_choices(trainer, choices(trainer, pl_module), named)


def choices(trainer: Trainer, stage: Stage) -> dict[str, str | float]:
    """What one compares runs by, flat.

    The same names for every run, for TensorBoard takes those of the first for all. It sorts them and shows five.
    """
    data, chosen = trainer.datamodule, stage.tuning.choices()  # type: ignore[attr-defined]  # Lightning declares no data
    rows: Any = data.micro_batch_size if isinstance(data, CorpusData) else 0
    return {
        "batch_rows": rows * trainer.accumulate_grad_batches * trainer.world_size,
        "family": stage.checkpoint.family.name,
        "lr": trainer.optimizers[0].defaults["lr"],
        "precision": str(trainer.precision),
        "tuning": " ".join([type(stage.tuning).__name__, str(chosen.get("kind", ""))]).strip(),
        "tuning_alpha": chosen.get("alpha", 0.0),
        "tuning_rank": chosen.get("rank", 0),
    }
