"""A corpus: files of raw records, and how one of them becomes a conversation, or answers that were judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from lit_sft.conversation import Conversation, Record
from lit_sft.corpora._cleaning import decode_record
from lit_sft.corpora._encodings import encoding_of, remedy_for
from lit_sft.corpora._fields import Fields, is_supervised
from lit_sft.corpora._reading import find_files, head_of, is_table
from lit_sft.errors import BadRecord, ConfigError, DataError

MAX_NAMES = 30
"""Names listed in an error message; the real corpora have 24 kinds at most."""


UNUSED_KEY = "unused-key"
"""With a key behind it the reason of a record that says more than was read."""

MAX_WEIGHT = 1000
"""An epoch that sees a record more often is a slip of the keyboard, and may not fit into memory."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with one record: skipped, or kept after a repair.

    `reason` is a short stable name; `excerpt` the beginning of the record; `detail` what else is known of it.
    """

    source: str
    reason: str
    excerpt: str
    is_kept: bool
    detail: str = ""


class Reading(NamedTuple):
    """What the bytes of a record hold, or None where a filter leaves it out; what was repaired; its kind."""

    record: Record | None
    repairs: list[str]
    group: str


class Corpus(ABC):
    """Records in files: JSON Lines, a JSON array or an object over several lines, plain, as gzip or as zstd; or tables.

    Args:
        path: A file, a glob, or a list of them. Or the folder of a dataset in Parquet or Arrow, as `hf download` and
            `save_to_disk` make it.
        weight: How often an epoch sees each record: 1 once, 2 twice, 0.25 a quarter of them, another in each epoch.
        count: Records of an epoch, in place of `weight`. Where the corpus has fewer, it begins again in a new order;
            where it has more, the next epoch goes on with those not seen yet.
        min_characters: Leave out conversations with fewer characters, all messages together; answers that were judged
            count with their prompt, and none of them may be shorter.
        max_characters: Leave out conversations with more.
        unused_keys: What becomes of a record with a key that is filled, not read, and not known to say nothing of the
            conversation (`id`, `source` and the like): `report` counts it, `refuse` makes it a bad record.
    """

    record_type: ClassVar[type[Record]] = Conversation
    """What `parse` returns."""

    layout: ClassVar[str]
    """The keys of a record, for error messages."""

    layouts: ClassVar[tuple[frozenset[str], ...]]
    """For each layout of a record, keys that only its records have."""

    group_key: ClassVar[str] = ""
    """The key that says of which kind a record is."""

    list_key: ClassVar[str] = ""
    """The key under which `parse` finds a record that is a list; "" where records are objects."""

    has_groups: ClassVar[bool] = False
    """Whether a file may be one object with an array of records for each kind."""

    is_about_safety: ClassVar[bool] = False
    """Whether its prompts are risky, so that a report counts refusals among their answers."""

    groups: list[str] | None = None
    """Only records whose `group_key` has one of these values; all if not given."""

    def __init__(
        self,
        path: str | list[str],
        weight: float = 1.0,
        count: int | None = None,
        min_characters: int = 0,
        max_characters: int | None = None,
        unused_keys: Literal["report", "refuse"] = "report",
    ) -> None:
        if max_characters is not None and max_characters < min_characters:
            raise ConfigError(f"max_characters is {max_characters}, below min_characters = {min_characters}")
        if not 0 < weight <= MAX_WEIGHT or (count is not None and count <= 0):
            raise ConfigError(
                f"weight and count of {path} must be above 0, a weight not above {MAX_WEIGHT}; leave out a corpus that "
                "is not wanted"
            )
        if count is not None and weight != 1:
            raise ConfigError(f"{path} has both a weight and a count; give one of them")
        self.path = path
        self.weight = weight
        self.count = count
        self.min_characters = min_characters
        self.max_characters = max_characters
        self.unused_keys = unused_keys
        self._repairs: list[str] = []

    @property
    def files(self) -> list[Path]:
        """The files of the corpus, in the order in which they are read."""
        return find_files(self.path)

    @property
    def options(self) -> dict[str, Any]:
        """What decides how a record is read, for fingerprints."""
        deciding_elsewhere = {"path", "weight", "count"}
        return {
            name: value
            for name, value in vars(self).items()
            if not name.startswith("_") and name not in deciding_elsewhere
        }

    @property
    def record_keys(self) -> frozenset[str]:
        """Keys by which its records are known."""
        return frozenset[str]().union(*self.layouts)

    @abstractmethod
    def parse(self, record: dict[str, Any]) -> Record:
        """What one raw record holds; which keys are looked up, here or in objects within, is remembered.

        Raises:
            BadRecord: If it cannot be used, with the reason.
        """

    def kind_of(self, record: dict[str, Any]) -> str:
        """Of which kind a raw record is, "" if nothing says it."""
        return str(record.get(self.group_key) or "") if self.group_key else ""

    def repaired(self, reason: str) -> None:
        """For `parse`: the record is kept, but something in it was put right."""
        self._repairs.append(reason)

    def layout_of(self, record: dict[str, Any]) -> frozenset[str] | None:
        """The layout of a record; None if it is none of this corpus."""
        for keys in self.layouts:
            if not keys.isdisjoint(record):
                return keys
        return None

    def read(self, data: bytes, layout: frozenset[str] | None, group: str = "") -> Reading:
        """What the bytes of one record hold.

        Args:
            data: One record.
            layout: That of the file: its first recognizable record decides.
            group: The key of the array in which the record stands, if the file is an object of arrays.

        Raises:
            BadRecord: If nothing of use, with the reason.
        """
        decoded, repairs = decode_record(data, self.list_key)
        if layout is None or self.layout_of(decoded) != layout:
            raise BadRecord("unknown-layout")
        record = Fields(decoded)
        if group and self.has_groups:
            record[self.group_key] = group
        self._repairs = repairs
        try:
            kind = self.kind_of(record)
            if self.groups and kind not in self.groups:
                return Reading(None, repairs, kind)
            if not is_supervised(record):
                raise BadRecord("no-supervised-answer")
            parsed = self.parse(record)
            unused = sorted({unused_key(key) for key in record.unused()})
        except RecursionError:
            raise BadRecord("nested-too-deeply") from None
        if unused and self.unused_keys == "refuse":
            raise BadRecord(unused[0])
        for reason in unused:
            self.repaired(reason)
        return Reading(parsed if self._has_length(parsed) else None, repairs, kind)

    def layout_in(self, data: bytes) -> frozenset[str] | None:
        """The layout of a record in bytes; None if it is broken, or of no layout of this corpus."""
        try:
            return self.layout_of(decode_record(data, self.list_key)[0])
        except BadRecord:
            return None

    def unreadable(self, file: Path, reasons: Iterable[str], others: Sequence[str] = ()) -> DataError:
        """The error for a file without a single usable record.

        Args:
            file: The file.
            reasons: Why its records are of no use.
            others: Names of classes that read it.
        """
        why = ", ".join(sorted(reasons)) or "it holds none"
        if why == "not-an-object":
            return DataError(f"the records of {file} are lists or texts, not objects. Expected {self.layout}")
        if not is_table(file) and (encoding := encoding_of(head_of(file))).startswith("UTF-"):
            return DataError(f"{file} is {encoding}. {remedy_for(file)}")
        remedy = f". {remedy_for(file)}" if "not-utf-8" in why else ""
        others = [name for name in others if name != type(self).__name__]
        if others and not remedy:
            remedy = f". {' or '.join(others)} reads the file: set class_path to it"
        return DataError(
            f"no record of {file} could be read as {type(self).__name__} ({why}). Expected {self.layout}{remedy}"
        )

    def check_groups(self, found: set[str]) -> None:
        """Refuse a filter that matches nothing.

        Raises:
            DataError: Naming what there is.
        """
        missing = sorted(set(self.groups or ()) - found)
        if missing:
            names = ", ".join(sorted(found - {""})[:MAX_NAMES]) or "none"
            raise DataError(f"no record of {self.path} has {self.group_key} {', '.join(missing)}. Found: {names}")

    def _has_length(self, record: Record) -> bool:
        if not self.min_characters and self.max_characters is None:
            return True
        lengths = [sum(len(message.content) for message in talk.messages) for talk in record.conversations()]
        is_short_enough = self.max_characters is None or max(lengths) <= self.max_characters
        return is_short_enough and self.min_characters <= min(lengths)


def unused_key(key: str) -> str:
    """The reason under which records are counted that have this key."""
    return f"{UNUSED_KEY} {''.join(char if char.isprintable() else '?' for char in key[:40])}"


def excerpt(data: bytes) -> str:
    """The beginning of a record, for a message."""
    return data[:200].decode("utf-8", errors="replace").strip()
