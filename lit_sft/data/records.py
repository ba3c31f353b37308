"""Any record of a corpus by its number: an index of the files, made once in one pass over their bytes.

A file with a record on each line is read where it lies. Records of any other container (an array, gzip, zstd) are
copied into the cache one after the other when the index is made.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache, partial
from itertools import accumulate, pairwise, repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_sft.corpora._base import Corpus
from lit_sft.corpora._reading import has_record_a_line, read_records, source_name
from lit_sft.corpora._splitting import MAX_RECORD_BYTES
from lit_sft.data.cache import CHECKSUMS, build_once, digest, usable
from lit_sft.data.deciding_code import code_digest
from lit_sft.errors import DataError

CHUNK_BYTES = 1 << 22

MAX_BYTES_AT_ONCE = 1 << 23
"""Consecutive records of more bytes are read one by one."""


class FileRecords:
    """The records of one file.

    Args:
        file: The file.
        folder: Its index.
    """

    def __init__(self, file: Path, folder: Path) -> None:
        self.file = file
        self._folder = folder
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        self.sha256: str = meta["sha256"]
        self._groups: list[str] = meta["groups"]
        self._is_copy: bool = meta["is_copy"]
        self._offsets: NDArray[np.uint64] = self._array("offsets")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __reduce__(self) -> Any:
        return FileRecords, (self.file, self._folder)

    def read(self, number: int) -> bytes:
        """The bytes of a record; of one that is too long to be any, only the first."""
        start, end = int(self._offsets[number]), int(self._offsets[number + 1])
        return self._whole(number, os.pread(self._descriptor, min(end - start, MAX_RECORD_BYTES + 2), start))

    def read_range(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes of consecutive records, read at once where none of them is huge."""
        offsets = self._offsets[start : stop + 1].tolist()
        if offsets[-1] - offsets[0] > MAX_BYTES_AT_ONCE:
            yield from map(self.read, range(start, stop))
            return
        block = os.pread(self._descriptor, offsets[-1] - offsets[0], offsets[0])
        for number, (begin, end) in enumerate(pairwise(offset - offsets[0] for offset in offsets), start=start):
            yield self._whole(number, block[begin:end])

    def sizes(self) -> NDArray[np.uint64]:
        """Bytes of each record [N] that was cut out of brackets; 0 for a line, which is one record however long."""
        return self._array("sizes") if self._is_copy else np.zeros(len(self), dtype=np.uint64)

    def source(self, number: int) -> str:
        """`file:line`, or `file:line#n`."""
        line, nth = self._places[number].tolist() if self._is_copy else (number + 1, 1)
        return source_name(self.file, line, nth)

    @property
    def has_groups(self) -> bool:
        """Whether records stand in arrays that have keys."""
        return bool(self._groups)

    def group(self, number: int) -> str:
        """The key of the array in which a record stands, if any."""
        return self._groups[self._group_numbers[number]] if self._groups else ""

    def _whole(self, number: int, data: bytes) -> bytes:
        """The bytes of a record, if they are what was copied."""
        if not self._is_copy:
            return data.removesuffix(b"\n")
        if zlib.crc32(data) != self._sums[number]:
            (self._folder / CHECKSUMS).unlink(missing_ok=True)
            raise DataError(
                f"the cache folder {self._folder} is damaged at record {number} of {self.file}; it is made anew when "
                "you start again"
            )
        return data

    @cached_property
    def _sums(self) -> NDArray[np.uint32]:
        return self._array("sums")

    @cached_property
    def _places(self) -> NDArray[np.uint32]:
        return self._array("places")

    @cached_property
    def _group_numbers(self) -> NDArray[np.uint32]:
        return self._array("groups")

    @property
    def _descriptor(self) -> int:
        return _opened(self._folder / "records" if self._is_copy else self.file, self._folder).number

    def _array(self, name: str) -> NDArray[Any]:
        # Not memory-mapped: each map holds a file open, and there may be thousands of files.
        array: NDArray[Any] = np.load(self._folder / f"{name}.npy")
        return array


class _Descriptor:
    """A file that is open for reading as long as this lives."""

    def __init__(self, file: Path) -> None:
        self.number = os.open(file, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.number)


@lru_cache(maxsize=128)
def _opened(file: Path, index: Path) -> _Descriptor:
    """A glob may name more files than a process may hold open; another index means that another file has the name."""
    return _Descriptor(file)


class Records:
    """The records of all files of a corpus, numbered through.

    Args:
        files: The records of each file.
    """

    def __init__(self, files: Sequence[FileRecords]) -> None:
        self.files = files
        self.bounds = [0, *accumulate(len(file) for file in files)]

    def __len__(self) -> int:
        return self.bounds[-1]

    def locate(self, number: int) -> tuple[int, int]:
        """Number of the file, and of the record in it."""
        file = bisect_right(self.bounds, number) - 1
        return file, number - self.bounds[file]

    def read(self, number: int) -> bytes:
        """The bytes of a record."""
        file, within = self.locate(number)
        return self.files[file].read(within)

    def read_range(self, start: int, stop: int) -> Iterator[tuple[int, bytes, str]]:
        """Number of the file, bytes and group of consecutive records."""
        for number, (file, begin) in enumerate(zip(self.files, self.bounds, strict=False)):
            first, last = max(start - begin, 0), min(stop - begin, len(file))
            if first < last:
                groups = map(file.group, range(first, last)) if file.has_groups else repeat("")
                for data, group in zip(file.read_range(first, last), groups, strict=False):
                    yield number, data, group

    def sizes(self) -> NDArray[np.uint64]:
        """Bytes of each record [N] that was cut out of brackets; 0 for a line."""
        return np.concatenate([file.sizes() for file in self.files])

    def source(self, number: int) -> str:
        """`file:line`, or `file:line#n`."""
        file, within = self.locate(number)
        return self.files[file].source(within)


def index_records(corpus: Corpus, cache: Path) -> Records:
    """The records of a corpus; files that are new are indexed first.

    Raises:
        DataError: If a file is missing, empty, or compressed and damaged.
    """
    return Records([_index_file(file, corpus, cache) for file in corpus.files])


def _index_file(file: Path, corpus: Corpus, cache: Path) -> FileRecords:
    # As git does: a file of the same path, size and times of change has not changed.
    state = file.stat()
    name = digest(
        str(file.resolve()),
        state.st_ino,
        state.st_size,
        state.st_mtime_ns,
        state.st_ctime_ns,
        corpus.has_groups,
        sorted(corpus.record_keys),
        code_digest(__name__),
    )
    build: Callable[[Path], None]
    container: dict[str, Any] = {"has_groups": corpus.has_groups, "record_keys": corpus.record_keys}
    if has_record_a_line(file, **container):
        build = partial(_index_lines, file)
    else:
        build = partial(_copy_records, file, container)
    folder = build_once(cache / "records" / name, build)
    with usable(folder, ValueError, KeyError, EOFError):
        return FileRecords(file, folder)


def _index_lines(file: Path, folder: Path) -> None:
    sha256 = hashlib.sha256()
    size, last = 0, b""
    ends = [np.zeros(1, dtype=np.int64)]
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            sha256.update(chunk)
            ends.append(np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == ord("\n")) + (size + 1))
            size, last = size + len(chunk), chunk[-1:]
    if not size:
        raise DataError(f"data file is empty: {file}")
    if last != b"\n":
        ends.append(np.array([size]))
    np.save(folder / "offsets.npy", np.concatenate(ends).astype(np.uint64))
    _write_meta(folder, sha256.hexdigest(), is_copy=False, groups=[])


def _copy_records(file: Path, container: dict[str, Any], folder: Path) -> None:
    offsets, places, groups, sizes, sums = [0], [], [], [], []
    names: dict[str, int] = {}
    with (folder / "records").open("wb") as copy:
        for raw in read_records(file, **container):
            data = raw.data[: MAX_RECORD_BYTES + 2]  # enough to see that it is too long
            copy.write(data)
            offsets.append(offsets[-1] + len(data))
            places.append((raw.line, raw.nth))
            groups.append(names.setdefault(raw.group, len(names)))
            sizes.append(raw.num_bytes)
            sums.append(zlib.crc32(data))
    np.save(folder / "offsets.npy", np.array(offsets, dtype=np.uint64))
    np.save(folder / "places.npy", np.array(places, dtype=np.uint32).reshape(-1, 2))
    np.save(folder / "sizes.npy", np.array(sizes, dtype=np.uint64))
    np.save(folder / "sums.npy", np.array(sums, dtype=np.uint32))
    np.save(folder / "groups.npy", np.array(groups, dtype=np.uint32))
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    _write_meta(folder, sha256, is_copy=True, groups=list(names))


def _write_meta(folder: Path, sha256: str, *, is_copy: bool, groups: list[str]) -> None:
    meta = {"sha256": sha256, "is_copy": is_copy, "groups": groups}
    (folder / "meta.json").write_text(json.dumps(meta, ensure_ascii=False), encoding="utf-8")
