"""A corpus: files of raw records, and how one record becomes a conversation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from lit_sft.conversation import Conversation
from lit_sft.corpora._cleaning import decode_record
from lit_sft.corpora._reading import RawRecord, find_files, read_records
from lit_sft.errors import BadRecord, ConfigError, DataError

MAX_NAMES = 30
"""Names listed in an error message; the real corpora have 24 kinds at most."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with one record: skipped, or kept after a repair.

    `reason` is a short stable name; `excerpt` the beginning of the record.
    """

    source: str
    reason: str
    excerpt: str
    is_kept: bool


Report = Callable[[Finding], None]


class Corpus(ABC):
    """Records in files: JSON Lines, a JSON array or an object over several lines, plain, as gzip or as zstd.

    Args:
        path: A file, a glob, or a list of them.
        groups: Only records whose `group_key` has one of these values; all if not given.
        min_characters: Leave out conversations with fewer characters, all messages together.
        max_characters: Leave out conversations with more.
    """

    layout: ClassVar[str]
    """The keys of a record, for error messages."""

    layouts: ClassVar[tuple[frozenset[str], ...]]
    """For each layout of a record, keys that only its records have."""

    group_key: ClassVar[str] = ""
    """The key that says of which kind a record is."""

    has_groups: ClassVar[bool] = False
    """Whether a file may be one object with an array of records for each kind."""

    def __init__(
        self,
        path: str | list[str],
        *,
        groups: list[str] | None = None,
        min_characters: int = 0,
        max_characters: int | None = None,
    ) -> None:
        if max_characters is not None and max_characters < min_characters:
            raise ConfigError(f"max_characters is {max_characters}, below min_characters = {min_characters}")
        self.path = path
        self.groups = groups
        self.min_characters = min_characters
        self.max_characters = max_characters
        self.num_left_out = 0
        """Records that the filters left out of the last reading."""

        self._repairs: list[str] = []

    @property
    def files(self) -> list[Path]:
        """The files of the corpus, in the order in which they are read."""
        return find_files(self.path)

    @abstractmethod
    def parse(self, record: dict[str, Any]) -> Conversation:
        """The conversation in one raw record.

        Raises:
            BadRecord: If there is none in it, with the reason.
        """

    def repaired(self, reason: str) -> None:
        """For `parse`: the record is kept, but something in it was put right."""
        self._repairs.append(reason)

    def conversations(self, report: Report) -> Iterator[Conversation]:
        """Every conversation of the files that the filters want, in order; whatever is wrong goes to `report`.

        Raises:
            DataError: If a file is missing or empty, no record in it can be read, or a filter matches nothing.
        """
        self.num_left_out = 0
        num_read = 0
        names: set[str] = set()
        for file in self.files:
            for conversation in self._read(file, report, names):
                num_read += 1
                yield conversation
        missing = sorted(set(self.groups or ()) - names)
        if missing:
            found = ", ".join(sorted(names)[:MAX_NAMES]) or "none"
            raise DataError(f"no record of {self.path} has {self.group_key} {', '.join(missing)}. Found: {found}")
        if not num_read:
            raise DataError(f"the filters leave no record of {self.path}: {self.num_left_out} left out")

    def _read(self, file: Path, report: Report, names: set[str]) -> Iterator[Conversation]:
        num_usable = 0
        layout: frozenset[str] | None = None
        reasons: set[str] = set()
        for raw in read_records(file, has_groups=self.has_groups):
            excerpt = raw.data[:200].decode("utf-8", errors="replace").strip()
            try:
                record, repairs = decode_record(raw.data)
                layout = self._layout_of(record, layout)
                conversation = self._selected(record, raw, names)
            except BadRecord as bad:
                reasons.add(bad.reason)
                report(Finding(raw.source, bad.reason, excerpt, is_kept=False))
                continue
            num_usable += 1
            if conversation is None:
                self.num_left_out += 1
                continue
            for reason in [*repairs, *self._repairs]:
                report(Finding(raw.source, reason, excerpt, is_kept=True))
            yield replace(conversation, source=raw.source)
        if not num_usable:
            raise DataError(
                f"no record of {file} could be read as {type(self).__name__} ({', '.join(sorted(reasons))}). "
                f"Expected {self.layout}"
            )

    def _layout_of(self, record: dict[str, Any], expected: frozenset[str] | None) -> frozenset[str]:
        """The layout of a record, which must be that of the file: its first recognisable record decides."""
        found = next((keys for keys in self.layouts if keys & record.keys()), None)
        if found is None or (expected and found != expected):
            raise BadRecord("unknown-layout")
        return found

    def _selected(self, record: dict[str, Any], raw: RawRecord, names: set[str]) -> Conversation | None:
        """The conversation of a record, or None if a filter leaves it out."""
        if raw.group:
            record[self.group_key] = raw.group
        if self.groups is not None:
            name = record.get(self.group_key)
            if isinstance(name, str):
                names.add(name)
            if name not in self.groups:
                return None
        self._repairs.clear()
        conversation = self.parse(record)
        if self.min_characters or self.max_characters is not None:
            length = sum(len(message.content) for message in conversation.messages)
            if length < self.min_characters or length > (self.max_characters or length):
                return None
        return conversation
