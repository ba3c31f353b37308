"""Standard output and error that no character and no reader can break."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO


class _Steady(io.FileIO):
    """Goes on into nothing when nobody reads any more: a training run must not end because `| head` has seen enough."""

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]  # any buffer
        except BrokenPipeError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.fileno())
            return super().write(data)  # type: ignore[arg-type]


def steady_streams(*, ends_unread: bool = False) -> None:
    """Replace what the terminal's encoding lacks by `?`, and outlive who reads.

    Args:
        ends_unread: Whether writing to an output that nobody reads raises BrokenPipeError, as it does without this.
    """
    if not ends_unread:
        sys.stdout = _steady(sys.stdout)
    sys.stderr = _steady(sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _steady(stream: TextIO | None) -> TextIO:
    if stream is None:  # closed by the caller
        return open(os.devnull, "w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    try:
        raw = io.BufferedWriter(_Steady(stream.fileno(), "w", closefd=False))
    except io.UnsupportedOperation:  # kept in memory, where nobody stops reading
        return stream
    is_unbuffered = stream.line_buffering or stream.write_through
    return io.TextIOWrapper(raw, stream.encoding, line_buffering=is_unbuffered)
