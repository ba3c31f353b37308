"""The file of a checkpoint: whole or not there, whatever happens while it is written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lit_sft.errors import ConfigError, TrainingError
from lit_sft.runs import is_whole_archive

PARTIAL = ".partial"
"""Ending of the name while a file is written."""


class CheckpointFile(TorchCheckpointIO):
    """Writes under a temporary name and renames; refuses what was cut off or damaged."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; the one that has the name is kept until the new one is on the disk.

        Raises:
            TrainingError: If it cannot be written.
        """
        path = Path(path)
        partial = path.with_name(path.name + PARTIAL)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            rename(partial, path)
        except (OSError, RuntimeError) as error:  # torch.save reports some failures to write as RuntimeError
            partial.unlink(missing_ok=True)
            kept = f"; the one before it is kept: {path}" if path.exists() else ""
            raise TrainingError(f"checkpoint {path.name} could not be written: {_reason(error)}{kept}") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Map a checkpoint into memory: of sharded weights each process reads its own part only.

        Raises:
            ConfigError: If it is not whole; torch itself does not compare checksums.
        """
        damaged = ConfigError(f"the checkpoint is damaged or cut off, and was not loaded: {path}")
        if not is_whole_archive(Path(path)):
            raise damaged
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only)
            return content
        except (OSError, EOFError) as error:  # what the checksums do not cover
            raise damaged from error


def link(path: Path, name: Path) -> None:
    """Let `name` be the same file as `path`; what had the name before has it until then.

    Where a file cannot have two names (FAT, SMB shares, mounted buckets) it becomes a copy.

    Raises:
        TrainingError: If that cannot be done.
    """
    partial = name.with_name(name.name + PARTIAL)
    try:
        partial.unlink(missing_ok=True)
        try:
            partial.hardlink_to(path)
        except OSError:
            shutil.copyfile(path, partial)
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        rename(partial, name)
    except OSError as error:
        raise TrainingError(f"checkpoint {name.name} could not be written: {_reason(error)}") from error


def rename(partial: Path, path: Path) -> None:
    """Give a file its name, so that a power cut leaves the old one or the new one."""
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())[:200]
