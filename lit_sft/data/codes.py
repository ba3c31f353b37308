"""Numbers for names, so that a table holds a byte or a bit in place of a text."""

from __future__ import annotations

from collections.abc import Iterable

OTHER = "other"
"""Stands for all names for which there is no number left."""


class Codes:
    """Numbers in the order in which names turn up, never more of them than a table entry can hold.

    Names come from corpora and prompt formats, which anybody may write: one that puts a text of its own into each name
    must cost the distinction between them and not the run.

    Args:
        limit: How many numbers there are; the last is that of `OTHER`.
        names: Names that have their numbers already.
        always: Names that get a number of their own however late they turn up.
    """

    def __init__(self, limit: int, names: Iterable[str] = (), always: Iterable[str] = ()) -> None:
        self._always = frozenset(always)
        self._limit = limit - 1 - len(self._always)
        self._codes = {name: code for code, name in enumerate(names)}

    @property
    def names(self) -> list[str]:
        """The name of each number."""
        return list(self._codes)

    def of(self, name: str) -> int:
        """The number of a name, or that of `OTHER`."""
        if name not in self._codes and name not in self._always and len(self._codes) >= self._limit:
            name = OTHER
        return self._codes.setdefault(name, len(self._codes))
