"""A corpus: files of raw records, and how one record becomes a conversation."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lit_sft.conversation import Conversation, Message
from lit_sft.errors import BadRecord, DataError

MAX_LINE_BYTES = 1 << 20
"""A longer line is no record of these corpora (their longest is 15,000 characters) but a broken file."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with one line: skipped, or kept after a repair.

    `reason` is a short stable name; `excerpt` the beginning of the line.
    """

    source: str
    reason: str
    excerpt: str
    is_kept: bool


Report = Callable[[Finding], None]


class Corpus(ABC):
    """Records in a file, one JSON object a line (JSON Lines, whatever the suffix).

    Args:
        path: The file.
    """

    layout: str
    """The keys of a record, for error messages."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    @property
    def name(self) -> str:
        """The corpus in tables and curves."""
        return type(self).__name__.lower()

    @abstractmethod
    def parse(self, record: dict[str, Any]) -> Conversation:
        """The conversation in one raw record.

        Raises:
            BadRecord: If there is none in it, with the reason.
        """

    def conversations(self, report: Report) -> Iterator[Conversation]:
        """Every conversation of the file, in order; whatever is wrong goes to `report`.

        Raises:
            DataError: If the file is missing or empty, or no record in it can be read.
        """
        if not self.path.is_file():
            raise DataError(f"data file not found: {self.path}")
        if self.path.stat().st_size == 0:
            raise DataError(f"data file is empty: {self.path}")
        num_read = 0
        reasons: set[str] = set()
        with self.path.open("rb") as file:
            for number, line in _lines(file):
                source = f"{self.path}:{number}"
                excerpt = line[:200].decode("utf-8", errors="replace").strip()
                try:
                    text, repairs = _clean(line, is_first=number == 1)
                    conversation = self.parse(_json_object(text))
                except BadRecord as bad:
                    reasons.add(bad.reason)
                    report(Finding(source, bad.reason, excerpt, is_kept=False))
                    continue
                for reason in repairs:
                    report(Finding(source, reason, excerpt, is_kept=True))
                num_read += 1
                yield Conversation(conversation.messages, source)
        if not num_read:
            raise DataError(
                f"no record of {self.path} could be read as {type(self).__name__} ({', '.join(sorted(reasons))}). "
                f"Expected one JSON object a line with the keys {self.layout}"
            )


def text_of(record: dict[str, Any], key: str, *, role: str) -> str:
    """The text under `key` without blanks around it.

    Raises:
        BadRecord: `no-<role>` if it is missing, null, blank; `<role>-not-text` if it is no string.
    """
    value = record.get(key)
    if value is None:
        raise BadRecord(f"no-{role}")
    if not isinstance(value, str):
        raise BadRecord(f"{role}-not-text")
    if not value.strip():
        raise BadRecord(f"no-{role}")
    return value.strip()


def single_turn(prompt: str, answer: str) -> Conversation:
    """A question and its answer."""
    return Conversation([Message("user", prompt), Message("assistant", answer)])


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines by number, split at LF only: U+2028 and its like occur inside JSON strings.

    No more than MAX_LINE_BYTES + 1 bytes of a line are held.
    """
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES)
        yield number, line


def _clean(line: bytes, *, is_first: bool) -> tuple[str, list[str]]:
    """The text of a line, and the harmless things that were taken off it."""
    if len(line) > MAX_LINE_BYTES:
        raise BadRecord("line-too-long")
    repairs = []
    if is_first and line.startswith(BYTE_ORDER_MARK):
        line = line.removeprefix(BYTE_ORDER_MARK)
        repairs.append("byte-order-mark")
    if line.endswith(b"\r\n"):
        repairs.append("crlf")
    line = line.strip()
    if not line:
        raise BadRecord("empty-line")
    try:
        return line.decode("utf-8"), repairs
    except UnicodeDecodeError:
        raise BadRecord("not-utf-8") from None


def _json_object(text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        raise BadRecord("broken-json") from None
    if not isinstance(record, dict):
        raise BadRecord("not-an-object")
    return record
