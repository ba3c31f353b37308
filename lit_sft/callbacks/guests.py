"""Callbacks of others in a configuration: what they watch must be measured, and who sets the learning rate is said."""

from __future__ import annotations

import logging

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder, StochasticWeightAveraging

from lit_sft.errors import ConfigError, accepted
from lit_sft.stages._summed import SummedLoss

log = logging.getLogger(__name__)

OWN_METRICS = {
    *("train/gradient_norm", "train/learning_rate", "speed/tokens_per_second", "speed/supervised_tokens_per_second"),
    *("speed/padding_share", "speed/memory_gib", "speed/data_wait_share"),
}
"""Metrics of every fit beside the means of its stage."""

SCHEDULED = "model.schedule sets the learning rate of every step"


class Guests(Callback):
    """Looks at the other callbacks before anything is trained."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what would fail after hours, and say what has no effect.

        Raises:
            ConfigError: If a callback watches a metric that there is not, or looks for a learning rate.
        """
        if stage != "fit":
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning declares no callbacks
        for callback in callbacks:
            if isinstance(callback, LearningRateFinder):
                raise ConfigError(f"LearningRateFinder cannot work: {SCHEDULED}. Leave it out")
            if isinstance(callback, StochasticWeightAveraging):
                log.warning("StochasticWeightAveraging: swa_lrs has no effect, for %s", SCHEDULED)
        # A callback from elsewhere may log anything.
        packages = {type(callback).__module__.partition(".")[0] for callback in callbacks}
        if isinstance(pl_module, SummedLoss) and packages <= {"lightning", "lit_sft"}:
            _refuse_unknown_metrics(callbacks, pl_module)


def _refuse_unknown_metrics(callbacks: list[Callback], stage: SummedLoss) -> None:
    means = stage.means(1.0, 1.0, *[0.0] * len(stage.measures))
    names = OWN_METRICS | {f"{split}/{name}" for split in ("train", "val") for name in means}
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        # val/loss/Belle is the loss of one corpus.
        if isinstance(monitor, str) and monitor not in names and "/".join(monitor.split("/")[:2]) not in names:
            where = f"{type(callback).__name__}: there is no metric {monitor!r}"
            raise ConfigError(f"{where}. {accepted(monitor.replace('_', '/'), names)}")
