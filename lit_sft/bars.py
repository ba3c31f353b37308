"""Progress on standard error: a bar that is drawn over on a terminal, plain lines in a file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

ON_A_TERMINAL, IN_A_FILE = 0.2, 10.0
"""Seconds between two drawings."""


class Lines(tqdm):  # type: ignore[type-arg]  # a class without parameters when it runs
    """For a file, in which nothing can be drawn over: a line every ten seconds, and the last one if it is to stay."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # type: ignore[override]  # as tqdm does
        """Write a line."""
        self.fp.write(f"{msg or self}\n")
        self.fp.flush()
        return True

    def clear(self, nolock: bool = False) -> None:
        """Nothing has to go."""

    def close(self) -> None:
        """Write the last line."""
        if not self.disable:
            self.disable = True
            self._decr_instances(self)  # type: ignore[attr-defined]
            if self.leave and self.n:
                self.display()


def on_terminal() -> bool:
    """Whether standard error is one."""
    return sys.stderr.isatty()


def bar(**options: Any) -> tqdm[Any]:
    """A bar of tqdm, or lines where standard error is not a terminal; `options` are those of tqdm."""
    if on_terminal():
        return tqdm(**{"mininterval": ON_A_TERMINAL, **options})
    # Without a delay the first line would say that nothing is done.
    return Lines(**{"mininterval": IN_A_FILE, "delay": IN_A_FILE, "miniters": 1, **options})
