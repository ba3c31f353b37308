"""Tokens per second, padding, memory and waiting for data, into the curves and the progress bar."""

from __future__ import annotations

import time
from typing import Any

import psutil
import torch
from lightning import Callback, LightningModule, Trainer

from lit_sft.conversation import Batch
from lit_sft.stages._base import Stage, is_logged

GIB = 1 << 30


class Throughput(Callback):
    """Logs speed, memory, and the shares of padding and of waiting for data, over the steps since the last log.

    Speed is in tokens and supervised tokens a second, without padding; every device is taken to have as many as the
    first. Waiting for data counts as training time; validation between two steps does not, nor does drawing answers.
    """

    def __init__(self) -> None:
        self._step = 0
        self._started = 0.0
        self._idle_since: float | None = None
        self._waited = 0.0
        self._num_tokens = 0
        self._num_supervised = 0
        self._num_positions = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._step = trainer.global_step
        self._started = self._idle_since = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait from here on: what came before may be a checkpoint."""
        self._idle_since = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock: from here on `_started` holds minus the time that ran."""
        self._started -= time.perf_counter()
        # Loaders work on meanwhile, and a checkpoint may follow: the next batch was not waited for.
        self._idle_since = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let it go on."""
        self._started += time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Add the time since the last batch."""
        if self._idle_since is not None:
            self._waited += time.perf_counter() - self._idle_since

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count, and log with the other metrics of the step."""
        now = self._idle_since = time.perf_counter()
        part = pl_module.part_of(batch) if isinstance(pl_module, Stage) else batch
        self._num_tokens += part.num_tokens
        self._num_supervised += part.num_supervised
        self._num_positions += part.input_ids.numel()
        is_step_done = trainer.global_step != self._step
        self._step = trainer.global_step
        if not is_step_done or not is_logged(trainer, trainer.global_step):
            return
        elapsed = now - self._started
        beside = pl_module.seconds_beside() if isinstance(pl_module, Stage) else 0.0
        rate = trainer.world_size / (elapsed - beside)
        pl_module.log_dict(
            {
                "speed/tokens_per_second": rate * self._num_tokens,
                "speed/supervised_tokens_per_second": rate * self._num_supervised,
                "speed/padding_share": 1 - self._num_tokens / self._num_positions,
                "speed/memory_gib": _memory_bytes(pl_module.device) / GIB,
            },
            prog_bar=True,
        )
        pl_module.log("speed/data_wait_share", self._waited / elapsed)
        self._started = now
        self._waited = 0.0
        self._num_tokens = self._num_supervised = self._num_positions = 0


def _memory_bytes(device: torch.device) -> int:
    """Most memory allocated on the GPU so far; on a CPU what the process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
