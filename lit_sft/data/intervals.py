"""The trainer's intervals in batches of the epoch, whose number Lightning would have to count."""

from __future__ import annotations

from typing import Any

from lit_sft.errors import ConfigError


def intervals_in_batches(trainer: Any, num_batches: int) -> None:
    """Turn intervals that are given as a share of an epoch into batches.

    Args:
        trainer: Lightning's; its `val_check_interval` and `limit_train_batches` are set.
        num_batches: Of an epoch on each rank, about.

    Raises:
        ConfigError: If validation would come after more batches than there are, or for `overfit_batches`.
    """
    if trainer.overfit_batches:
        raise ConfigError(
            "trainer.overfit_batches would take the place of the order of the data; use limit_train_batches"
        )
    for name in ("val_check_interval", "limit_train_batches"):
        value = getattr(trainer, name, None)  # an interval of time is kept elsewhere
        if isinstance(value, float) and 0 < value < 1:
            # Whole optimizer steps: within one there is nothing to measure that was not there before.
            size = trainer.accumulate_grad_batches
            setattr(trainer, name, min(max(1, int(value * num_batches / size)) * size, num_batches))
    interval = getattr(trainer, "val_check_interval", None)
    if isinstance(interval, int) and trainer.check_val_every_n_epoch and interval > 1.1 * num_batches:
        raise ConfigError(
            f"trainer.val_check_interval is {interval}, but an epoch has about {num_batches} batches: nothing "
            "would be validated. Lower it, or set trainer.check_val_every_n_epoch: null to count over epochs"
        )
