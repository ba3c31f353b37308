"""What is prepared once and kept: indices of records, what was found in them, their tokens.

Everything lies in folders that are named after what they were made from, so nothing is ever out of date, only unused;
the whole cache can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from lit_sft.errors import DataError
from lit_sft.files import remove_leftovers, whole_folder

CODE_THAT_DECIDES = ("conversation.py", "corpora", "families", "data")
"""Sources of the package that decide what is in the cache."""


def default_cache() -> Path:
    """`lit_sft` in the user's cache folder (XDG base directory specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit_sft"


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """The folder, built by the first process that asks for it, while others wait.

    Args:
        folder: Where the result lies.
        build: Fills the empty folder that it is given, which gets its name only when it is complete.

    Raises:
        DataError: If the cache cannot be written.
    """
    if not folder.is_dir():
        with usable(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(folder.name + ".lock")):
                if not folder.is_dir():
                    remove_leftovers(folder)
                    with whole_folder(folder) as partial:
                        build(partial)
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
    errors: tuple[type[Exception], ...] = (OSError, *damage)
    try:
        yield
    except errors as error:
        raise DataError(
            f"the cache folder {folder} cannot be used ({error}). Delete it if it is damaged, make room, or name "
            "another place with data.cache"
        ) from error


def digest(*parts: Any) -> str:
    """A name for what was made from these parts."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


@cache
def code_digest(*classes: type) -> str:
    """A name for the code that decides what is in the cache, and for that of classes from elsewhere."""
    package = Path(__file__).parents[1]
    files = [file for name in CODE_THAT_DECIDES for file in _sources(package / name)]
    files += [Path(inspect.getfile(cls)) for cls in classes]
    return digest(*(file.read_bytes() for file in files))


def _sources(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]
