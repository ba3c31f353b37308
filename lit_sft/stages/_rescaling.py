"""A checkpoint counts the micro-batches of each device; shared out over others the same rows make other counts."""

from __future__ import annotations

from typing import Any

from lit_sft.errors import ConfigError


def rescale_progress(checkpoint: dict[str, Any], data: str, num_devices: int) -> None:
    """Turn the counts of the running epoch into those of `num_devices`, in place.

    Args:
        checkpoint: What Lightning and the data module restore from.
        data: Key of the data module's state in it.
        num_devices: Devices of this run.

    Raises:
        ConfigError: If so many devices would stand within a micro-batch.
    """
    stored = checkpoint.get("num_devices", num_devices)
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    count = progress["ready"]
    recounted, left = divmod(count * stored, num_devices)
    if left:
        raise ConfigError(
            f"the checkpoint stands in the middle of an epoch, after {count} micro-batches on each of {stored} "
            f"devices, which {num_devices} devices cannot share evenly. Use {stored}, or a divisor"
        )
    # Lightning tells from how far they lie apart at which moment of a batch the checkpoint was saved.
    for name in ("ready", "started", "processed", "completed"):
        progress[name] += recounted - count
    if data in checkpoint and checkpoint[data].get("num_batches"):
        checkpoint[data]["num_batches"] = recounted
