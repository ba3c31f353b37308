"""Callbacks of others in a configuration: what they watch must be measured, and who sets the learning rate is said."""

from __future__ import annotations

import logging

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder, StochasticWeightAveraging

from lit_sft.data._base import CorpusData
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
        _tell_unused(callbacks)
        # A callback from elsewhere may log anything.
        packages = {type(callback).__module__.partition(".")[0] for callback in callbacks}
        if isinstance(pl_module, SummedLoss) and packages <= {"lightning", "lit_sft"}:
            data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning declares no data
            corpora = [corpus.name for corpus in data.scanned] if isinstance(data, CorpusData) else []
            _refuse_unknown_metrics(callbacks, pl_module, corpora)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say it once more at the end of a fit, where it is read."""
        if stage == "fit":
            _tell_unused(trainer.callbacks)  # type: ignore[attr-defined]


def _tell_unused(callbacks: list[Callback]) -> None:
    if any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks):
        log.warning("StochasticWeightAveraging: swa_lrs has no effect, for %s", SCHEDULED)


def _refuse_unknown_metrics(callbacks: list[Callback], stage: SummedLoss, corpora: list[str]) -> None:
    means = stage.means(1.0, 1.0, *[0.0] * len(stage.measures))
    of_corpora = [f"/{name}" for name in corpora] if len(corpora) > 1 else []
    names = OWN_METRICS | {f"{split}/{name}" for split in ("train", "val") for name in means} | {*stage.shown_metrics}
    names |= {f"val/{name}{corpus}" for name in means for corpus in of_corpora}
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor not in names:
            where = f"{type(callback).__name__}: there is no metric {monitor!r}"
            raise ConfigError(f"{where}. {accepted(monitor.replace('_', '/'), names)}")
