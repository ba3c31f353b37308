"""Files of records, cut into the bytes of single records: lazily, in constant memory, whatever the container.

The container is seen from the content, never from the suffix: plain, gzip or zstd; JSON Lines, a JSON array,
an object of arrays, or one object over several lines; or Parquet or Arrow, of which each row is a record. Bytes are cut
before they are decoded, so that a broken record costs that record and not those after it.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from glob import glob
from itertools import chain
from pathlib import Path
from typing import Any

import zstandard

from lit_sft.corpora._splitting import BYTE_ORDER_MARK, MAX_RECORD_BYTES, Element, Splitter
from lit_sft.corpora._tables import TABLES, rows_of, tables_in
from lit_sft.errors import DataError

GZIP, ZSTD, ZIP = COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")

PACKAGE, DEMO = Path(__file__).parents[1], "lit_sft/demo/"
"""Where the demo corpora are said to be; they are in the package, wherever a command is run."""

CHUNK_BYTES = 1 << 16
PART_BYTES = 1 << 10
HEAD_BYTES = 1 << 12  # enough to tell the container

MAX_RATIO = 200
"""Text becomes about five times smaller, the same record again and again a hundred times."""

MIN_BOMB_BYTES = 1 << 28
"""No harm is done by less."""

_ARRAY = re.compile(rb'\[\s*(?:[{\[\]"]|$)')  # of what is not an object, too: each is then refused as such
_OBJECT_OF_ARRAYS = re.compile(rb'\{\s*(?:"[^"\n]*"\s*:\s*\[|\}|$)')
_OBJECT_OF_RECORDS = re.compile(rb'\{\s*"([^"\n]*)"\s*:\s*\[\s*\{')
"""In files that need not be one; a record may begin like this, with its tools, say."""
_LISTS_OF_RECORDS = frozenset(
    b"tools functions history messages conversations conversation prompt completion chosen rejected".split()
)
_OBJECT_OVER_LINES = re.compile(rb"\{[ \t]*\r?\n")


@dataclass(frozen=True, slots=True)
class RawRecord:
    """Bytes of one record; where it is longer than MAX_RECORD_BYTES, not all of them.

    `line` is that of its first byte, counted from 1, `nth` its place among the records that begin on that line, also
    from 1; `group` the key of the array it stands in, if the file is an object of arrays; `num_bytes` how long it is
    if it was cut out of brackets, 0 if it is a line.
    """

    file: Path
    line: int
    nth: int
    data: bytes
    group: str
    num_bytes: int

    @property
    def source(self) -> str:
        """`file:line`, or `file:line#n` for all but the first record of a line."""
        return source_name(self.file, self.line, self.nth)


def source_name(file: Path, line: int, nth: int) -> str:
    """How messages call a record."""
    return f"{file}:{line}" + (f"#{nth}" if nth > 1 else "")


def find_files(path: str | list[str]) -> list[Path]:
    """The files behind a path, a glob or a list of them, each once, those of a glob by name; of a folder its tables.

    Raises:
        DataError: If there is none, or a folder has no table or several.
    """
    files: list[Path] = []
    for given in [path] if isinstance(path, str) else path:
        pattern = os.path.expanduser(given)
        try:
            found = [pattern] if Path(pattern).exists() else sorted(glob(pattern, recursive=True))
        except (OSError, ValueError) as error:  # longer than a name may be, or with a NUL in it
            raise DataError(f"data file not found: {pattern!r} ({error})") from None
        if not found and pattern.startswith(DEMO) and (PACKAGE.parent / pattern).is_file():
            found = [str(PACKAGE.parent / pattern)]
        if not found:
            raise DataError(f"data file not found: {pattern}. Put it there, or give the path of yours")
        files += [file for name in found for file in _files_of(Path(name))]
    for file in files:
        if not file.is_file() or not os.access(file, os.R_OK):
            raise DataError(f"{file} cannot be read: a broken link, or no permission")
    return list({file.resolve(): file for file in reversed(files)}.values())[::-1]


def read_records(
    file: Path, *, has_groups: bool = False, record_keys: frozenset[str] = frozenset()
) -> Iterator[RawRecord]:
    """Every record of a file, in order.

    Args:
        file: JSON Lines, an array or an object over several lines; each also as gzip or zstd. Or a table.
        has_groups: Whether an object that begins with an array is one of arrays of records.
        record_keys: Keys by which records are known: the only line of `{"conversations": [...]}` is a record, and
            `{"data": [...]}` an object of arrays.

    Raises:
        DataError: If the file is empty, an archive of files, or compressed and damaged.
    """
    if is_table(file):
        yield from _rows(file)
        return
    chunks = _chunks(file)
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= HEAD_BYTES:
            break
    if not head:
        raise DataError(f"data file is empty: {file}")
    level = _level_of_records(head, has_groups, record_keys)
    everything = chain([head], chunks)
    last_line = count = 0
    for line, data, group, num_bytes in _lines(everything) if level is None else Splitter(level).split(everything):
        count = count + 1 if line == last_line else 1
        last_line = line
        yield RawRecord(file, line, count, data, group, num_bytes)


def has_record_a_line(file: Path, *, has_groups: bool = False, record_keys: frozenset[str] = frozenset()) -> bool:
    """Whether the records of a file are its lines, as they lie on the disk: JSON Lines, not compressed."""
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    return not head.startswith((*COMPRESSED, *TABLES)) and _level_of_records(head, has_groups, record_keys) is None


def is_table(file: Path) -> bool:
    """Whether a file is one of Parquet or Arrow."""
    with file.open("rb") as stream:
        return stream.read(max(map(len, TABLES))).startswith(TABLES)


def head_of(file: Path) -> bytes:
    """The beginning of a file, decompressed."""
    return next((chunk for chunk in _chunks(file) if chunk), b"")


def content_of(file: Path) -> bytes:
    """All of a file, decompressed."""
    return b"".join(_chunks(file))


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    tables = tables_in(path)
    if not tables:
        raise DataError(f"{path} is a folder. Name the files in it, for example {path}/*.jsonl")
    return tables


def _rows(file: Path) -> Iterator[RawRecord]:
    size, num_written, row = file.stat().st_size, 0, 0
    for row, data in enumerate(rows_of(file), start=1):
        num_written += len(data)
        _refuse_bomb(file, num_written, size)
        yield RawRecord(file, row, 1, data, "", num_bytes=0)
    if not row:
        raise DataError(f"data file is empty: {file}")


def _level_of_records(head: bytes, has_groups: bool, record_keys: frozenset[str]) -> int | None:
    """In how many brackets a record stands; None if every line is one."""
    head = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    if _ARRAY.match(head):
        return 1
    if _OBJECT_OF_ARRAYS.match(head) if has_groups else _is_object_of_records(head, record_keys):
        return 2
    return 0 if _OBJECT_OVER_LINES.match(head) else None


def _is_object_of_records(head: bytes, record_keys: frozenset[str]) -> bool:
    begun = _OBJECT_OF_RECORDS.match(head)
    if not begun or begun[1] in _LISTS_OF_RECORDS or begun[1].decode(errors="replace") in record_keys:
        return False
    try:
        return record_keys.isdisjoint(json.loads(head.partition(b"\n")[0]))
    except (ValueError, RecursionError):
        return True  # the first line is not all of the object


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        first = stream.read(CHUNK_BYTES)
        chunks = chain([first] if first else [], iter(partial(stream.read, CHUNK_BYTES), b""))
        if first.startswith(GZIP):
            yield from _decompressed(file, chunks, partial(zlib.decompressobj, wbits=31))
        elif first.startswith(ZSTD):
            yield from _decompressed(file, chunks, lambda: zstandard.ZstdDecompressor().decompressobj())
        elif first.startswith(ZIP):
            raise DataError(f"{file} is a zip archive. Unpack it and name the file in it")
        else:
            yield from chunks


def _decompressed(file: Path, chunks: Iterable[bytes], new_decoder: Callable[[], Any]) -> Iterator[bytes]:
    """The content of one or more compressed streams; an incomplete one is an error, for it hides how much is lost."""
    decoder = new_decoder()
    num_read = num_written = 0
    try:
        for chunk in chunks:
            # Four bytes of zstd may be 128 KB: a small part at a time keeps what one call returns small, too.
            parts = (chunk[start : start + PART_BYTES] for start in range(0, len(chunk), PART_BYTES))
            for part in parts:
                num_read += len(part)
                rest = part
                while rest:
                    if decoder.eof:
                        decoder = new_decoder()
                    content = decoder.decompress(rest)
                    num_written += len(content)
                    _refuse_bomb(file, num_written, num_read)
                    yield content
                    rest = decoder.unused_data
    except (zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{file} is damaged ({error}). Download it again") from None
    if not decoder.eof:
        raise DataError(f"{file} is cut off: its compressed stream has no end. Download it again")


def _refuse_bomb(file: Path, num_written: int, num_read: int) -> None:
    if num_written > max(MIN_BOMB_BYTES, MAX_RATIO * num_read):
        raise DataError(
            f"{file} unpacks to more than {MAX_RATIO} times its size: this is not text, but a broken file or a trap. "
            "If it is neither, unpack it and name the file in it"
        )


def _lines(chunks: Iterable[bytes]) -> Iterator[Element]:
    """Lines by number, split at LF only: U+2028 and its like occur inside JSON strings."""
    number, pending = 1, b""
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for line in ended:
            yield Element(number, pending + line, "", num_bytes=0)
            number, pending = number + 1, b""
        if len(pending) <= MAX_RECORD_BYTES:
            pending += rest
    if pending:
        yield Element(number, pending, "", num_bytes=0)
