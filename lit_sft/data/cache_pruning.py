"""What nobody has used for long is removed from the cache, as soon as nobody uses any of it."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lit_sft.data.cache import usable

log = logging.getLogger(__name__)

DAY = 24 * 3600

MAX_DAYS = 90
"""What was not used for so long is removed."""

MAX_BYTES = 100 * 10**9
"""Above that, what was not used for longest is removed first."""

MIN_DAYS = 7
"""What was used since then is kept, however large the cache is: otherwise runs would undo each other's work."""

KINDS = ("records", "scans", "tokens")

_held: dict[Path, int] = {}


def hold_cache(cache: Path) -> None:
    """Keep others from pruning the cache as long as this process lives; if nobody holds it yet, prune it before.

    A lock of the whole cache and not of its folders: a corpus may have more files than a process can hold open. It
    is the system's, so that it ends with the process, and processes that this one starts share it.

    Raises:
        DataError: If the cache cannot be written.
    """
    if cache in _held:
        return
    with usable(cache):
        cache.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(cache / "in-use", os.O_RDWR | os.O_CREAT, 0o666)
        with suppress(OSError):  # somebody uses it, or the file system knows no locks: nothing is removed
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            prune(cache)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
    _held[cache] = descriptor


@dataclass
class _Entry:
    """A folder of the cache, with its lock and what was left of building it."""

    paths: list[Path] = field(default_factory=list)
    used: float = 0.0
    size: int = 0


def prune(cache: Path) -> None:
    """Remove what is too old or too much, once a day; nobody else may be using the cache.

    Args:
        cache: Its folder.
    """
    marker, now = cache / "pruned", time.time()
    if marker.exists() and now - marker.stat().st_mtime < DAY:
        return
    marker.touch()
    entries = sorted(_entries(cache), key=lambda entry: entry.used)
    size, removed = sum(entry.size for entry in entries), 0
    num_removed = 0
    for entry in entries:
        days = (now - entry.used) / DAY
        if days > MAX_DAYS or (days > MIN_DAYS and size - removed > MAX_BYTES):
            for path in entry.paths:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            removed += entry.size
            num_removed += 1
    if num_removed:
        log.info(
            "removed %d of %d entries (%.1f MB) from the cache %s: not used for %d days, or for %d and more than %d GB",
            num_removed,
            len(entries),
            removed / 1e6,
            cache,
            MAX_DAYS,
            MIN_DAYS,
            MAX_BYTES // 10**9,
        )


def _entries(cache: Path) -> list[_Entry]:
    entries: dict[tuple[str, str], _Entry] = {}
    for kind in KINDS:
        for path in (cache / kind).glob("*"):
            entry = entries.setdefault((kind, path.name.split(".")[0]), _Entry())
            entry.paths.append(path)
            entry.used = max(entry.used, path.stat().st_mtime)
            files = [path, *path.rglob("*")] if path.is_dir() else [path]
            entry.size += sum(file.stat().st_size for file in files)
    return list(entries.values())
