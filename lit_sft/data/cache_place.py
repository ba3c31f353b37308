"""Where the cache lies: on a disk of this machine, whatever the home folder lies on."""

from __future__ import annotations

import logging
import os
import platform
import re
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)

MOUNTS = Path("/proc/self/mountinfo")

NETWORK_FILE_SYSTEMS = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ncpfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs"),
        *("orangefs", "pvfs2", "wekafs", "panfs", "ocfs2", "gfs2", "fhgfs", "dvs"),
        *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.juicefs", "fuse.s3fs", "fuse.gcsfuse"),
        *("fuse.goofys", "fuse.rclone", "fuse.davfs", "fuse.blobfuse", "fuse.blobfuse2", "fuse.ossfs", "fuse.cosfs"),
    }
)
"""Types of file systems that several machines may have in common; a page that one of them maps may be out of date."""

LOCAL_PLACES = (Path("/var/tmp"), Path(tempfile.gettempdir()))  # noqa: S108 - the folder in it is the user's own


def cache_folder(given: str | None) -> Path:
    """The folder of the cache: what is asked for, or else `lit_sft` in the user's cache folder.

    On a network file system all machines of a cluster would write into it, and slowly. The default is then replaced
    by a folder on a disk of the machine; in a folder that was asked for, and where there is no such disk, each machine
    gets a folder of its own.
    """
    folder = Path(given).expanduser() if given else default_cache()
    kind = file_system(folder)
    machine = platform.node() or "machine"
    if kind not in NETWORK_FILE_SYSTEMS or folder.name == machine:
        return folder
    chosen = (None if given else _local_folder()) or folder / machine
    log.info("the cache folder %s lies on a network file system (%s): this machine uses %s", folder, kind, chosen)
    return chosen


def default_cache() -> Path:
    """`lit_sft` in the user's cache folder (XDG base directory specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit_sft"


def file_system(path: Path) -> str:
    """The type of the file system on which a path lies or would lie, as mount(8) calls it; "" if unknown."""
    place = str(path.absolute().resolve()) + "/"
    best, kind = "", ""
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""  # not Linux, or a sandbox without /proc
    for line in lines:
        before, _, after = line.partition(" - ")
        mounted = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split(" ")[4])
        # Of two at the same place the later one lies on top.
        if place.startswith(mounted.rstrip("/") + "/") and len(mounted) >= len(best):
            best, kind = mounted, after.split(" ")[0]
    return kind


def _local_folder() -> Path | None:
    """A folder of this user on a disk of this machine."""
    for place in LOCAL_PLACES:
        folder = place / f"lit_sft-{os.getuid()}"
        if not place.is_dir() or file_system(place) in NETWORK_FILE_SYSTEMS:
            continue
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            continue
        # Anybody may make a folder of this name there, and what lies in it is trained on.
        if not folder.is_symlink() and folder.stat().st_uid == os.getuid():
            return folder
    return None
