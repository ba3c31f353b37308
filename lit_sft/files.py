"""Files and folders that are whole or not there, whatever happens while they are written.

Everything is written under a name that nothing had before and then renamed, so a reader never sees half of it, and
nothing that somebody else has put beside it is touched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_sft.errors import ConfigError

PARTIAL = ".partial"
"""Ending of the name while something is written."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield an empty file to write; it gets its name `path` when the block ends, and is removed if that raises.

    What had the name before has it until then. A power cut leaves the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(PARTIAL, f"{path.name}.", path.parent)
    os.close(descriptor)
    partial = Path(name)
    try:
        partial.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        yield partial
        _flush(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _flush(path.parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it gets its name `path` when the block ends, and is removed if that raises.

    Raises:
        OSError: If `path` exists by then and is not an empty folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(PARTIAL, f"{path.name}.", path.parent))
    try:
        partial.chmod(0o777 & ~_umask())
        yield partial
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write a UTF-8 file as a whole."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors=errors)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file as a whole, for people to read, too."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def read_object(path: Path) -> dict[str, Any]:
    """What a JSON file of one of our folders says.

    Raises:
        ConfigError: If it is not an object, or not to be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is damaged: it is not a JSON object")
    return content


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of writing `path`; only for one that no other process may be writing."""
    ours = re.compile(re.escape(path.name) + r"\.[a-z0-9_]{8}" + re.escape(PARTIAL))
    for found in [*path.parent.glob(f"*{PARTIAL}")]:
        if ours.fullmatch(found.name):
            if found.is_dir() and not found.is_symlink():
                shutil.rmtree(found, ignore_errors=True)
            else:
                found.unlink(missing_ok=True)


def is_regular(path: Path) -> bool:
    """Whether a path is a file itself: not a link, device, pipe or folder."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _flush(path: Path) -> None:
    """Have the disk hold what was written to a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def states_of(paths: Iterable[Path]) -> list[list[str | int]]:
    """What tells files from others without reading gigabytes: name, size and time of the last change of each."""
    states = ((path, path.stat()) for path in paths)
    return [[path.name, state.st_size, state.st_mtime_ns] for path, state in states]
