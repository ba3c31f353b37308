"""Which errors are the user's to put right, and what to say of them."""

from __future__ import annotations

import errno
import pickle
import traceback

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_sft.configuration import missing_package, user_error_in
from lit_sft.errors import ConfigError, UserError


def mistake_behind(error: Exception) -> UserError | None:
    """What the user can put right, in one line; None if the error is ours."""
    if mistake := user_error_in(error):
        return mistake
    said = " ".join(str(error).split())
    if isinstance(error, pickle.UnpicklingError):
        return ConfigError("the checkpoint is damaged, or would run code when it is read; it was not loaded")
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return ConfigError(f"the disk is full: {said}. Checkpoints that were written before are kept")
    if isinstance(error, ValueError | ImportError) and (missing := missing_package(str(error))):
        return ConfigError(missing)
    if isinstance(error, RuntimeError) and "more than one stateful callback" in said:
        return ConfigError(f"trainer.callbacks: {said[:400]}")
    is_refusal = isinstance(error, ValueError | MisconfigurationException) and _is_lightnings_own(error)
    return ConfigError(said[:400]) if is_refusal else None


def _is_lightnings_own(error: Exception) -> bool:
    """Whether Lightning refuses what the configuration says, not what code of ours, or of a library, gave it."""
    modules = [str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not modules or not modules[-1].startswith("lightning."):
        return False
    caller = next(name for name in [*reversed(modules), __name__] if name.partition(".")[0] == "lit_sft")
    return caller.startswith("lit_sft.cli.") or caller == "lit_sft.configuration"
