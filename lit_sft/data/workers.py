"""Work done in other processes, in order."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_workers(function: Callable[[Item], Result], items: Sequence[Item], num_workers: int) -> Iterator[Result]:
    """`function` of every item, in order; the processes start at once and end with this one.

    Args:
        function: What to do; errors that it raises are raised here.
        items: What to do it with.
        num_workers: Processes; 0 to do it here, one item after the other.
    """
    loader = DataLoader(
        _Calls(function, items),
        batch_size=None,
        num_workers=min(num_workers, len(items)),
        collate_fn=_as_it_is,
        worker_init_fn=prepare_worker,
        prefetch_factor=4 if num_workers and items else None,
        # Its own, so that training draws the same numbers whether there was something to prepare or not.
        generator=torch.Generator(),
    )
    return iter(loader)


def prepare_worker(worker: int) -> None:
    """For a new process: tokenizers must not start threads in it, and a signal to all is for the first process."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_for, args=(os.getppid(),), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Looking for cycles among millions of short-lived texts, which have none, takes a seventh of the time.
    gc.set_threshold(100_000)


def _end_for(parent: int) -> None:
    """A scheduler's SIGTERM reaches the whole group, and the step needs its data; only the parent's counts."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(128 + signal.SIGTERM)


class _Calls(Dataset[Any]):
    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self._function = function
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._function(self._items[index])


def _as_it_is(result: Any) -> Any:
    """In place of a conversion to tensors."""
    return result
