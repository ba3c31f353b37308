"""Which checkpoints a run keeps."""

from __future__ import annotations

from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_sft.runs import LAST_CHECKPOINT


class LastCheckpoint(ModelCheckpoint):
    """`checkpoints/last.ckpt`: after each validation or epoch, and where training ended."""

    def __init__(self) -> None:
        super().__init__(filename=Path(LAST_CHECKPOINT).stem, enable_version_counter=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The end may lie behind the last validation; measuring and exporting must mean the same weights."""
        super().on_train_end(trainer, pl_module)
        if self._last_global_step_saved != trainer.global_step:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / LAST_CHECKPOINT)


def keep_last_and_best(*, has_validation: bool) -> list[ModelCheckpoint]:
    """`last.ckpt`, and `best.ckpt` by validation loss where there is one."""
    best = ModelCheckpoint(filename="best", monitor="val/loss", enable_version_counter=False)
    return [LastCheckpoint(), best] if has_validation else [LastCheckpoint()]
