"""What a run was made of: resolved configuration and manifest."""

from __future__ import annotations

import hashlib
import logging
import platform
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from lit_sft.data._base import CorpusData
from lit_sft.files import read_object, write_json, write_text
from lit_sft.runs.folder import CONFIG, MANIFEST, SUMMARY, command, is_run
from lit_sft.stages._base import Stage

log = logging.getLogger(__name__)

PACKAGES = ("lit_sft", "torch", "lightning", "transformers", "peft", "bitsandbytes", "datasets", "tokenizers",
            "sentencepiece", "torchmetrics", "jsonargparse", "tensorboard", "numpy")  # fmt: skip


class RunRecord(SaveConfigCallback):
    """Writes `config.yaml` and `manifest.json` into the run folder when a fit begins; LightningCLI makes it.

    A run that is resumed keeps those that it has until its checkpoint is accepted and training goes on.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """For a new run, after the data could be read."""
        if stage == "fit" and not is_run(Path(trainer.default_root_dir)):
            self._write(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """For one that is resumed."""
        self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Once, on the first process."""
        if self.already_saved or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Stage)
        folder = Path(trainer.default_root_dir)
        manifest = self._manifest(trainer, pl_module)
        if (folder / MANIFEST).is_file():  # the run goes on
            first = read_object(folder / MANIFEST)
            resumed = [*first.get("resumed", []), manifest["started"]]
            manifest = {**manifest, "started": first.get("started", manifest["started"]), "resumed": resumed}
            (folder / SUMMARY).unlink(missing_ok=True)  # it is not finished any more
        write_text(folder / CONFIG, self.parser.dump(self.config, skip_none=False, skip_validation=True))
        write_json(folder / MANIFEST, manifest)
        self.already_saved = True
        log.info(
            "run folder %s. Curves: %s --logdir %s. Ctrl-C saves it; it goes on with fit --resume %s",
            folder, command("tensorboard"), folder.parent, folder,
        )  # fmt: skip

    def _manifest(self, trainer: Trainer, stage: Stage) -> dict[str, Any]:
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it, but does not declare it
        return {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            "seed": self.config.get("seed_everything"),
            "family": stage.checkpoint.family.name,
            "checkpoint": str(stage.checkpoint.path.resolve()),
            "checkpoint_config": stage.checkpoint.config,
            "sha256": {
                "tokenizer": _fingerprints(stage.checkpoint.tokenizer_files),
                "data": data.fingerprints() if isinstance(data, CorpusData) else {},
            },
            "git": _git_state(),
            "versions": {"python": platform.python_version(), **_versions()},
            "hardware": {
                "platform": platform.platform(),
                "devices": trainer.num_devices,
                "nodes": trainer.num_nodes,
                "device": str(trainer.strategy.root_device),
                "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
                "cuda": torch.version.cuda,
                "precision": str(trainer.precision),
            },
        }


def _fingerprints(files: Iterable[Path]) -> dict[str, str]:
    found = {}
    for path in files:
        with path.open("rb") as file:
            found[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def _git_state() -> dict[str, Any] | None:
    """Commit of this source tree and whether it was changed since; None outside a repository."""
    source = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=source, capture_output=True, text=True, check=True)  # noqa: S603, S607
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "is_modified": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.CalledProcessError):
        return None
