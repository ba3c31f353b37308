"""Tokens per second, padding and memory, into the curves and the progress bar."""

from __future__ import annotations

import time
from typing import Any

import psutil
import torch
from lightning import Callback, LightningModule, Trainer

from lit_sft.conversation import Batch

GIB = 1 << 30


class Throughput(Callback):
    """Logs tokens and supervised tokens a second, share of padding, and memory, over the steps since the last log.

    Tokens are counted without padding, over all devices. Validation between two steps is not counted as training time.
    """

    def __init__(self) -> None:
        self._step = 0
        self._seconds = 0.0
        self._started = 0.0
        self._num_tokens = 0
        self._num_supervised = 0
        self._num_positions = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Stop the clock, and log with the other metrics of the step."""
        self._seconds += time.perf_counter() - self._started
        self._num_tokens += batch.num_tokens
        self._num_supervised += batch.num_supervised
        self._num_positions += batch.input_ids.numel()
        is_step_done = trainer.global_step != self._step
        self._step = trainer.global_step
        if not is_step_done or trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        world_size = trainer.world_size
        pl_module.log_dict(
            {
                "speed/tokens_per_second": world_size * self._num_tokens / self._seconds,
                "speed/supervised_tokens_per_second": world_size * self._num_supervised / self._seconds,
                "speed/padding_share": 1 - self._num_tokens / self._num_positions,
                "speed/memory_gib": _memory_bytes(pl_module.device) / GIB,
            },
            prog_bar=True,
        )
        self._seconds = 0.0
        self._num_tokens = self._num_supervised = self._num_positions = 0


def _memory_bytes(device: torch.device) -> int:
    """Most memory allocated on the GPU so far; on a CPU what the process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
