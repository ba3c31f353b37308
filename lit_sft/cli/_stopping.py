"""How verbs end that write gigabytes when they are told to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lit_sft.errors import Stopped


@contextmanager
def removing_on_sigterm() -> Iterator[None]:
    """While it is open a SIGTERM ends what runs as Ctrl-C does, so that what was half written is removed.

    Only in the main thread, which is the one that signals reach.

    Raises:
        Stopped: When the signal comes.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
