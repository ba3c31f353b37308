"""What is prepared once and kept: indices of records, what was found in them, their tokens.

Everything lies in folders that are named after what they were made from, so nothing is ever out of date, only unused;
the whole cache can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from lit_sft.errors import DataError
from lit_sft.files import remove_leftovers, whole_folder

CHECKSUMS = "checksums.json"

CHECKED_BY_RECORD = "records"
"""A file that may be as large as the corpus: its size is compared here, its records where they are read."""


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """The folder, built by the first process that asks for it, while others wait; anew if it was damaged.

    Args:
        folder: Where the result lies.
        build: Fills the empty folder that it is given, which gets its name only when it is complete.

    Raises:
        DataError: If the cache cannot be written.
    """
    with usable(folder):
        if not _is_whole(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(folder.name + ".lock")):
                if not _is_whole(folder):
                    remove_leftovers(folder)
                    shutil.rmtree(folder, ignore_errors=True)  # damaged, if it is there
                    with whole_folder(folder) as partial:
                        build(partial)
                        text = json.dumps({file.name: _sum_of(file) for file in sorted(partial.iterdir())})
                        (partial / CHECKSUMS).write_text(text, encoding="utf-8")
        os.utime(folder)  # it was used now; what is not used for long is removed
    return folder


@contextmanager
def usable(folder: Path, *damage: type[Exception]) -> Iterator[None]:
    """Say in one line what is wrong with a folder of the cache.

    Args:
        folder: What is written or read.
        damage: Errors that, beside those of the disk, mean that it is damaged.

    Raises:
        DataError: If it cannot be written or read, is full, or damaged.
    """
    errors: tuple[type[Exception], ...] = (OSError, NotImplementedError, *damage)  # the second: no file locks there
    try:
        yield
    except errors as error:
        raise DataError(
            f"the cache folder {folder} cannot be used ({error}). Delete it if it is damaged, make room, or name "
            "another place with data.cache"
        ) from error


def digest(*parts: Any) -> str:
    """A name for what was made from these parts."""
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _is_whole(folder: Path) -> bool:
    """Whether the folder is there and its files are what they were when it was built."""
    try:
        sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        return all(_sum_of(folder / name) == found for name, found in sums.items()) and bool(sums)
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError):
        return False


def _sum_of(file: Path) -> list[int]:
    """Size and checksum of a file."""
    size = file.stat().st_size
    return [size, 0 if file.name == CHECKED_BY_RECORD else zlib.crc32(file.read_bytes())]
