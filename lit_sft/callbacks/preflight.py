"""What can be said before a run costs anything: does it fit into memory, and do answers learn to end?"""

from __future__ import annotations

import logging
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lit_sft.data._base import CorpusData
from lit_sft.data.batch import Batch
from lit_sft.preflight.network import measure_network
from lit_sft.preflight.plan import device_memory, plan_of, verdict
from lit_sft.stages._base import Stage

log = logging.getLogger(__name__)


class Preflight(Callback):
    """Logs the estimated memory before the weights load, and warns if the stage finds fault with what it first sees.

    That is the first batch and, as one batch can be so by chance, a sample of the corpora.

    Args:
        config: The parsed configuration of the fit.
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        self.is_first_batch_checked = False
        self.fault: str | None = None
        """What is wrong with the first batch."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Estimate; a warning, for an estimate is not a reason to refuse."""
        if stage != "fit" or not trainer.is_global_zero or not isinstance(pl_module, Stage):
            return
        family = pl_module.checkpoint.family
        device = trainer.strategy.root_device.type
        plan = plan_of(self.config, pl_module.tuning, family, trainer.world_size, is_gpu=device == "cuda")
        fits, said = verdict(measure_network(family), plan, family.lora_targets, device_memory(device))
        log.log(logging.INFO if fits else logging.WARNING, "memory of a step: %s", said)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Look at the first batch only."""
        if self.is_first_batch_checked or not isinstance(pl_module, Stage):
            return
        self.is_first_batch_checked = True
        self.fault = pl_module.check_first_batch(batch)
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it, but does not declare it
        if self.fault and isinstance(data, CorpusData):
            self.fault = pl_module.check_first_batch(data.sample())
        if self.fault:
            log.warning("%s", self.fault)
