"""What a model says before training, after each validation and at the end: the first and the latest are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from lightning import Callback, LightningModule, Trainer


class BeforeAfter(Callback, ABC):
    """Looks at the model once for each state of its weights."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        """What is looked at, with what the model said of it `before`, and says now, `after`."""
        self._seen_at = -1

    def state_dict(self) -> dict[str, Any]:
        """The rows, for a run that is taken up."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What was said before is that of the first start."""
        self.rows = state_dict["rows"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, keep the first and the latest, and log them."""
        if trainer.state.fn == "fit":
            self._see(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look once more if steps were made since."""
        if trainer.global_step != self._seen_at:
            self._see(trainer, pl_module)

    def _see(self, trainer: Trainer, stage: LightningModule) -> None:
        if self.see(trainer, stage):
            self._seen_at = trainer.global_step

    @abstractmethod
    def see(self, trainer: Trainer, stage: LightningModule) -> bool:
        """Renew the rows and log them; whether there is anything to look at."""
