"""Signals that ask a run to end: Ctrl-C, a scheduler that wants the machine back, a time limit that is near."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lit_sft.errors import Stopped

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
DEBOUNCE_SECONDS = 1.0
"""Seconds in which a second SIGINT is the same key press: a launcher passes on what the terminal sent already."""


class Signals:
    """Keeps the first signal until training has come to a point where it can stop."""

    def __init__(self) -> None:
        self.received = 0
        """The signal's number; 0 if there was none."""
        self.is_training = False
        """Otherwise there is nothing to save, and a signal ends at once."""
        self._received_at = 0.0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Receive signals within this block."""
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        self.listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """Receive signals from here on, also if somebody else began to."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> Any:
        now = time.monotonic()
        is_again = bool(self.received) and number == signal.SIGINT and now - self._received_at > DEBOUNCE_SECONDS
        if not self.is_training or is_again:
            raise Stopped(number)
        if not self.received:
            self.received, self._received_at = number, now
            log.warning("%s: saving after this step", signal.Signals(number).name)
