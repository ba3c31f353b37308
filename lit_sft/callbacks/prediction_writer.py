"""Predictions as JSON Lines, written while they come."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, TextIO

from lightning import Callback, LightningModule, Trainer

from lit_sft.errors import ConfigError
from lit_sft.runs import PREDICTIONS
from lit_sft.sharding import FSDP2

log = logging.getLogger(__name__)


class PredictionWriter(Callback):
    """Writes a row for each prompt, in order.

    Args:
        path: File to write; if not given `predictions.jsonl` in the run folder, with --base `predictions-base.jsonl`.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = Path(path) if path else None
        self.default_name = PREDICTIONS
        self.num_rows = 0
        self._file: TextIO | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settle where to write, before any weight is loaded.

        Raises:
            ConfigError: On more than one device, unless each holds a part of the weights and so has to answer all.
        """
        if stage != "predict":
            return
        if trainer.world_size > 1 and not isinstance(trainer.strategy, FSDP2):
            raise ConfigError(
                "predict writes one ordered file and runs on one device: set trainer.devices to 1. "
                "For a model that one device does not hold, set trainer.strategy to fsdp2"
            )
        self.path = self.path or Path(trainer.default_root_dir) / self.default_name
        if self.path.is_dir():
            raise ConfigError(f"predictions.path {self.path} is a folder; give a file")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"predictions.path {self.path} cannot be written: {error.strerror}") from None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open under a temporary name, so that a file of the final name is always whole."""
        if trainer.is_global_zero:
            self._file = self._partial().open("w", encoding="utf-8")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: list[dict[str, Any]],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append the rows of a batch; what is written survives an interruption."""
        if self._file is None:
            return
        for row in outputs:
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()
        self.num_rows += len(outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the file its name."""
        if self._file is None:
            return
        assert self.path is not None
        self._file.close()
        self._partial().replace(self.path)
        log.info("%d answers in %s", self.num_rows, self.path)

    def _partial(self) -> Path:
        assert self.path is not None
        return self.path.with_name(self.path.name + ".partial")
