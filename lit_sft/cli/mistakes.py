"""Which errors are the user's to put right, and what to say of them."""

from __future__ import annotations

import errno
import pickle
import re
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger

from lit_sft.configuration import missing_package, user_error_in
from lit_sft.errors import ConfigError, UserError

NO_DEVICE = re.compile("No supported gpu backend|can not run on your system")
"""What Lightning says of `gpu` and of `cuda` on a machine without one."""


def mistake_behind(error: Exception) -> UserError | None:
    """What the user can put right, in one line; None if the error is ours."""
    if mistake := user_error_in(error):
        return mistake
    said = " ".join(str(error).split())
    if isinstance(error, pickle.UnpicklingError):
        return ConfigError("the checkpoint is damaged, or would run code when it is read; it was not loaded")
    if _is_full_disk(error):
        return ConfigError(f"the disk is full: {said}. Checkpoints that were written before are kept")
    if isinstance(error, ValueError | ImportError) and (missing := missing_package(str(error))):
        return ConfigError(missing)
    if isinstance(error, RuntimeError) and "more than one stateful callback" in said:
        return ConfigError(f"trainer.callbacks: {said[:400]}")
    if isinstance(error, MisconfigurationException) and NO_DEVICE.search(said):
        return ConfigError(
            "trainer.accelerator: torch finds no such device. Set it to auto or cpu, or look at nvidia-smi"
        )
    if mistake := _refused_option(error) or _guests_failure(error):
        return mistake
    is_refusal = isinstance(error, ValueError | MisconfigurationException) and _is_lightnings_own(error)
    return ConfigError(said[:400]) if is_refusal else None


@contextmanager
def full_disks_told_once() -> Iterator[None]:
    """While it is open threads that meet a full disk die silently.

    That of TensorBoard does, and what next hands it curves raises the error again, which ends the run in one line.
    """
    before = threading.excepthook

    def show(ended: threading.ExceptHookArgs) -> None:
        if not _is_full_disk(ended.exc_value):
            before(ended)

    threading.excepthook = show
    try:
        yield
    finally:
        threading.excepthook = before


def _is_full_disk(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


def _refused_option(error: Exception) -> ConfigError | None:
    """What the constructor of a class of others says of an option, which jsonargparse wraps."""
    root: BaseException = error
    while root.__cause__:
        root = root.__cause__
    modules = _modules(error)
    if root is error or not isinstance(error, ValueError) or not modules or not modules[-1].startswith("jsonargparse"):
        return None
    if (_modules(root) or [""])[-1].startswith("lit_sft."):
        return None
    makers = [
        type(frame.f_locals["self"]).__name__
        for frame, _ in traceback.walk_tb(root.__traceback__)
        if frame.f_code.co_name == "__init__" and "self" in frame.f_locals
    ]
    said = " ".join(str(root).split())[:400]
    return ConfigError(f"{makers[0]}: {said}" if makers else said)


def _guests_failure(error: Exception) -> ConfigError | None:
    """A callback of Lightning, or a logger of anybody, that a configuration names and that fails."""
    guest: Any = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        known = frame.f_locals
        if frame.f_code.co_name == "_call_callback_hooks":
            guest = known.get("callback")
        elif isinstance(known.get("self"), Logger):
            guest = known["self"]
        elif str(frame.f_globals.get("__name__", "")).startswith("lit_sft."):
            guest = None
    is_of_others = isinstance(guest, Logger) or type(guest).__module__.startswith("lightning.")
    if guest is None or not is_of_others or type(guest).__module__.startswith("lit_sft."):
        return None
    place = "logger" if isinstance(guest, Logger) else "callbacks"
    said = " ".join(str(error).split())[:400]
    return ConfigError(f"trainer.{place}: {type(guest).__name__} failed with {type(error).__name__}: {said}")


def _modules(error: BaseException) -> list[str]:
    return [str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(error.__traceback__)]


def _is_lightnings_own(error: Exception) -> bool:
    """Whether Lightning refuses what the configuration says, not what code of ours, or of a library, gave it."""
    modules = _modules(error)
    if not modules or not modules[-1].startswith("lightning."):
        return False
    caller = next(name for name in [*reversed(modules), __name__] if name.partition(".")[0] == "lit_sft")
    return caller.startswith("lit_sft.cli.") or caller == "lit_sft.configuration"
