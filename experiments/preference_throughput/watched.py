"""A callback that a configuration names, to see how many pairs and tokens a step has and what it loses."""

from __future__ import annotations

from typing import Any, ClassVar

from lightning import Callback, Trainer


class Watched(Callback):
    """Keeps all three of each step."""

    losses: ClassVar[list[float]] = []
    pairs: ClassVar[list[int]] = []
    tokens: ClassVar[list[int]] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.pairs.append(len(batch.pairs))
        self.tokens.append(batch.num_tokens)
