"""The processes of a run: which one this is, and its end with the one that started it. Loads no torch."""

from __future__ import annotations

import os
import threading
import time
from typing import TypeVar

T = TypeVar("T")


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


def end_with_parent() -> None:
    """End this process when the one that started it is gone; waiting for it in a collective could take forever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
