"""A checkpoint with two names, on every file system."""

import errno
import os
from pathlib import Path

import pytest

from lit_sft.callbacks.checkpoint_file import link


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_a_file_cannot_have_two_names_it_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    (tmp_path / "best.ckpt").write_bytes(b"new")
    (tmp_path / "last.ckpt").write_bytes(b"old")
    link(tmp_path / "best.ckpt", tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]
