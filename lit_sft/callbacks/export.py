"""What trained, in the standard format of its kind, when a fit ends."""

from __future__ import annotations

from pathlib import Path

from lightning import Callback, Trainer

from lit_sft.stages._base import Stage


class Export(Callback):
    """Writes `adapter/` (LoRA) or `model/` (full tuning) into the run folder."""

    def on_fit_end(self, trainer: Trainer, pl_module: Stage) -> None:  # type: ignore[override]
        """Write it, on the first process only; also if the run was taken up where only this was missing.

        All take part, for each may hold a part of the weights.
        """
        state = trainer.strategy.lightning_module_state_dict()
        if trainer.is_global_zero:
            pl_module.export(Path(trainer.default_root_dir), state)
