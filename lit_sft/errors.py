"""Mistakes a user can fix: each message says what is wrong, where, and what to do.

UserError
├── CheckpointError   the model folder
├── DataError         a corpus or prompt file
├── ConfigError       an option, or two that contradict each other
└── TrainingError     a run that must not go on (NaN loss, a checkpoint of another run)

The command line prints them as one line and exits with code 2; `--debug` shows the traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Base of every error that is the user's to fix."""


class CheckpointError(UserError):
    """A model folder is missing, incomplete or of an unknown family."""


class DataError(UserError):
    """A corpus or prompt file is missing, empty or unreadable."""


class ConfigError(UserError):
    """An option has a value that cannot work."""


class TrainingError(UserError):
    """Training cannot go on without doing harm."""


class Stopped(BaseException):
    """A signal asked the run to end, and what was to be saved is saved. No error, so that nothing handles it as one.

    Args:
        signal: Number of the signal; the exit code is 128 more, as a shell has it.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


class BadRecord(Exception):  # noqa: N818 - it is a verdict on a record, caught by the reader
    """A record that cannot become a training example; it is counted and skipped, never fatal by itself.

    Args:
        reason: Short, stable name under which the record is counted, for example `empty-answer`.
        detail: What else is known of this record, as free text: it is listed with it and never counted.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[BadRecord], tuple[str, str]]:
        return type(self), (self.reason, self.detail)


def accepted(name: str, names: Iterable[str], meant: str | None = None) -> str:
    """End of an error message about a wrong name: the accepted names, and the one that is meant or nearest."""
    names = sorted(names)
    near = [meant] if meant else difflib.get_close_matches(name, names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Accepted: {', '.join(names)}"
