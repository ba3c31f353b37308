"""The file of a checkpoint: whole or not there, whatever happens while it is written."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lit_sft.errors import ConfigError, TrainingError
from lit_sft.files import remove_leftovers, whole_file
from lit_sft.runs.folder import LAST_CHECKPOINT, is_whole_archive

COUNTS = dict.fromkeys(("ready", "started", "processed", "completed"), int)
CONTENTS: dict[str, Any] = {
    "state_dict": dict,
    "global_step": int,
    "epoch": int,
    "callbacks": dict,
    "optimizer_states": list,
    "loops": {
        "fit_loop": {
            "epoch_progress": {"total": COUNTS, "current": COUNTS},
            "epoch_loop.batch_progress": {"total": COUNTS, "current": COUNTS},
        }
    },
}
"""What every training checkpoint holds, by type."""


class CheckpointFile(TorchCheckpointIO):
    """Writes under a temporary name and renames; refuses what was cut off or damaged.

    Args:
        checked: A checkpoint whose checksums this process has compared already.
    """

    def __init__(self, checked: Path | None = None) -> None:
        self._checked = checked

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; the one that has the name is kept until the new one is on the disk.

        Raises:
            TrainingError: If it cannot be written.
        """
        path = Path(path)
        try:
            remove_leftovers(path)
            with whole_file(path) as partial, partial.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch.save reports some failures to write as RuntimeError
            kept = f"; the one before it is kept: {path}" if path.exists() else ""
            raise TrainingError(f"checkpoint {path.name} could not be written: {_reason(error)}{kept}") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Map a checkpoint into memory: of sharded weights each process reads its own part only.

        All processes of a run must call it; they take the file that the first one was given.

        Raises:
            ConfigError: If it is not whole; torch itself does not compare checksums.
        """
        whole = self._whole_for_all(Path(path))
        if whole is None:
            raise _damaged(path)
        return read_checkpoint(whole)

    def _whole_for_all(self, path: Path) -> Path | None:
        """The checkpoint of the first process if it is whole: only that one reads it through, which takes minutes."""
        is_connected = dist.is_available() and dist.is_initialized()
        verdict: list[Path | None] = [None]
        if not is_connected or dist.get_rank() == 0:
            verdict = [path if path == self._checked or is_whole_archive(path) else None]
        if is_connected:
            dist.broadcast_object_list(verdict, src=0)
        return verdict[0]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Map a training checkpoint into memory; no code in it runs.

    Raises:
        ConfigError: If the file is damaged, or is not a training checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, EOFError) as error:  # what the checksums do not cover
        raise _damaged(path) from error
    except pickle.UnpicklingError as error:
        raise ConfigError(f"{path} is damaged, or would run code when it is read; it was not loaded") from error
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:  # an archive of something else
        raise _foreign(path) from error
    if not _has_form(content, CONTENTS):
        raise _foreign(path)
    checkpoint: dict[str, Any] = content
    return checkpoint


def _has_form(content: Any, form: Any) -> bool:
    """Whether nested dictionaries hold what resuming and measuring read of them."""
    if not isinstance(form, dict):
        return isinstance(content, form)
    return isinstance(content, dict) and all(key in content and _has_form(content[key], form[key]) for key in form)


def _damaged(path: Path) -> ConfigError:
    return ConfigError(f"the checkpoint is damaged or cut off, and was not loaded: {path}")


def _foreign(path: Path) -> ConfigError:
    return ConfigError(f"{path} is not a training checkpoint of lit_sft; give one such as runs/NAME/{LAST_CHECKPOINT}")


def link(path: Path, name: Path) -> None:
    """Let `name` be the same file as `path`; what had the name before has it until then.

    Where a file cannot have two names (FAT, SMB shares, mounted buckets) it becomes a copy.

    Raises:
        TrainingError: If that cannot be done.
    """
    try:
        with whole_file(name) as partial:
            try:
                partial.unlink()
                partial.hardlink_to(path)
            except OSError:  # FAT, SMB and mounted buckets know no second names
                shutil.copyfile(path, partial)
    except OSError as error:
        raise TrainingError(f"checkpoint {name.name} could not be written: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())[:200]
