"""The processes of a run: which one this is, and its end with the one that started it. Loads no torch."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PORT = "MASTER_PORT"
"""Environment variable from which torch takes where the processes of a run meet."""

LAUNCHED = (PORT, "MASTER_ADDR", "NODE_RANK", "LOCAL_RANK", "RANK", "WORLD_SIZE")
"""Environment variables of a process that has been launched as one of several."""


def process_rank() -> int:
    """Rank of this process in a run of several, before any of them is connected to the others."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return int(next((rank for rank in ranks if rank), 0))


def gather(own: T) -> list[T]:
    """What each process of the run has, by rank; all of them must call it."""
    from torch import distributed

    if not distributed.is_initialized():
        return [own]
    parts: list[T] = [own] * distributed.get_world_size()
    distributed.all_gather_object(parts, own)
    return parts


@contextmanager
def launch_environment() -> Iterator[None]:
    """Choose where processes that this one launches meet, unless a launcher or a scheduler has; leave nothing behind.

    Lightning would take one of the ports that the kernel hands out to whoever asks; until its processes have started,
    some seconds later, another program may have got it. And it leaves in the environment which process this was, by
    which a further run, here or in a process of its own, would take itself for one that somebody launches.
    """
    before = {name: os.environ.get(name) for name in LAUNCHED}
    if not {PORT, "SLURM_JOB_ID", "LSB_JOBID"} & os.environ.keys():
        os.environ[PORT] = str(free_port())
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def free_port() -> int:
    """A port that nobody listens on, below those that the kernel hands out."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    except OSError:
        first = 32768
    first = max(first, 2048)
    while True:
        port = random.SystemRandom().randrange(max(1024, first - 12000), first)  # draws nothing of the run's own
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("", port))
            return port


def end_with_parent() -> None:
    """End this process when the one that started it is gone; waiting for it in a collective could take forever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
