"""One process at a time: on a run folder, on a file of answers."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lit_sft.errors import ConfigError

log = logging.getLogger(__name__)

LOCK = ".lock"
FLOCK = "hhqqi"
"""Layout of `struct flock` on 64-bit Linux: type, whence, start, length, process."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only one that writes into a run folder.

    Raises:
        ConfigError: If another process does.
    """
    with (folder / LOCK).open("a") as file:
        lock(file, f"{folder}: it is still at work on this run. Wait until it has ended, or begin another run without "
             "--resume")  # fmt: skip
        yield


def is_locked(folder: Path) -> bool:
    """Whether another process is writing into a run folder. It only asks: a run that begins now finds the lock free."""
    question = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        with (folder / LOCK).open("rb") as file:
            answer = fcntl.fcntl(file, fcntl.F_GETLK, question)
    except OSError:  # none was ever made, or the file system knows no locks
        return False
    return bool(struct.unpack(FLOCK, answer)[0] != fcntl.F_UNLCK)


def lock(file: IO[Any], refusal: str) -> None:
    """Be the only one that has this file as long as it is open; the kernel ends that with the process, however it dies.

    Raises:
        ConfigError: If another process has it: that it writes into `refusal`.
    """
    try:
        # Unlike flock, not inherited: a worker that outlives a killed run by seconds must not bar the next.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EAGAIN, errno.EACCES}:
            raise ConfigError(f"another process is using {refusal}") from None
        log.warning("%s cannot be locked (%s): see to it that no other job uses it", file.name, error.strerror)
