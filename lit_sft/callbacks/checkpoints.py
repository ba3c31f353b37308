"""Which checkpoints a run keeps."""

from __future__ import annotations

from lightning.pytorch.callbacks import ModelCheckpoint


def keep_last_and_best(*, has_validation: bool) -> list[ModelCheckpoint]:
    """`checkpoints/last.ckpt` after each validation or epoch, and `best.ckpt` by validation loss where there is one."""
    last = ModelCheckpoint(filename="last", enable_version_counter=False)
    best = ModelCheckpoint(filename="best", monitor="val/loss", enable_version_counter=False)
    return [last, best] if has_validation else [last]
