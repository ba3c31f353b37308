"""What was learned: held-out metrics and sample answers before and after, at the end of a fit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer

from lit_sft.callbacks.hyperparameters import results
from lit_sft.callbacks.pair_samples import PairSamples
from lit_sft.callbacks.samples import Samples
from lit_sft.files import write_json
from lit_sft.runs.folder import SUMMARY
from lit_sft.runs.summary import one_line
from lit_sft.stages._base import Stage

log = logging.getLogger(__name__)


class Summary(Callback):
    """Writes `summary.json` into the run folder; `python -m lit_sft summary` prints it.

    The validation that Lightning runs before the first step is the state before: it is logged if it
    covers the whole split (`trainer.num_sanity_val_steps: -1`).
    """

    def __init__(self, samples: Samples, pairs: PairSamples) -> None:
        self._samples = samples
        self._pairs = pairs
        self._before: dict[str, float] = {}
        self._after: dict[str, float] = {}
        self._before_step = self._after_step = 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the first and the latest metrics."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if not trainer.sanity_checking:
            self._after = metrics
            self._after_step = trainer.global_step
        elif trainer.num_sanity_val_steps == float("inf") and not self._before:
            # Lightning measures before some of the runs that are taken up, too.
            self._before = metrics
            self._before_step = trainer.global_step
            curves = results(pl_module) if isinstance(pl_module, Stage) else {}
            state_before = {name: metrics[curve] for name, curve in curves.items() if curve in metrics}
            for logger in trainer.loggers:
                logger.log_metrics(metrics | state_before, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """What was measured, for a run that is taken up."""
        return {name: getattr(self, name) for name in ("_before", "_before_step", "_after", "_after_step")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The state before is that of the first start."""
        vars(self).update(state_dict)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it, and say in one line what came of the run."""
        if not trainer.is_global_zero:
            return
        ended_early = _why_early(trainer, pl_module)
        summary = {
            "metrics": dict(pl_module.shown_metrics) if isinstance(pl_module, Stage) else {},
            "optimizer_steps": trainer.global_step,
            "ended_early": ended_early,
            "before": self._before,
            "before_step": self._before_step,
            "after": self._after,
            "after_step": self._after_step,
            "samples": self._samples.rows,
            "pairs": self._pairs.rows,
        }
        folder = Path(trainer.default_root_dir)
        write_json(folder / SUMMARY, summary)
        if ended_early:
            log.info(ended_early)
        log.info(one_line(folder, summary))


def _why_early(trainer: Trainer, stage: LightningModule) -> str | None:
    """Where a run ended and why, if that is not where `max_steps` or `max_epochs` end it."""
    if not isinstance(stage, Stage) or not trainer.global_step or stage.progress >= 1:
        return None
    reasons = [stage.stopped_because] if stage.stopped_because else []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning declares no callbacks
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            reasons.append(f"EarlyStopping: {' '.join(callback.stopping_reason_message.split())}")
        elif isinstance(callback, Timer) and (left := callback.time_remaining()) is not None and left <= 0:
            reasons.append("trainer.max_time is over")
    return f"ended at {stage.progress:.0%} of the run" + (f": {'; '.join(reasons)}" if reasons else "")
