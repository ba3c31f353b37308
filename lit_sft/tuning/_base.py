"""A tuning: how the base is loaded and wrapped, which weights train, and what is exported."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lit_sft.checkpoint.opening import Checkpoint

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Tuning(ABC):
    """Which weights of a checkpoint train. One file in this folder is one tuning."""

    export_name: ClassVar[str]
    """Folder of the run that receives what `export` writes."""

    adapter: str | None = None
    """Folder of what trained before, if it starts from such."""

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint that the tuning does not suit, before data or weights are read.

        Raises:
            UserError: If it does not.
        """
        return

    @abstractmethod
    def load(self, checkpoint: Checkpoint, precision: str) -> torch.nn.Module:
        """The network with exactly the weights that train requiring gradients.

        Args:
            checkpoint: The base.
            precision: Lightning's `trainer.precision`, for example `bf16-mixed`.
        """

    def rate_factor(self, name: str) -> float:
        """Learning rate of the parameter `name`, as a multiple of the optimizer's."""
        return 1.0

    @abstractmethod
    def causal_lm(self, model: Any) -> PreTrainedModel:
        """The transformers network inside what `load` returned, adapters in place."""

    def base_of(self, model: Any) -> AbstractContextManager[Any]:
        """While it is open, `model` before anything trained answers as its checkpoint does."""
        return nullcontext()

    def why_not_sharded(self) -> str | None:
        """Why the weights cannot be shared out over devices, and what to do instead; None if they can."""
        return None

    def why_not_compiled(self) -> str | None:
        """Why blocks cannot be compiled, and what to do instead; None if they can."""
        return None

    @abstractmethod
    def save(self, model: Any, folder: Path, checkpoint: Checkpoint, weights: dict[str, Any] | None = None) -> None:
        """Write what trained in the standard format of its kind.

        Args:
            model: What `load` returned.
            folder: Where to.
            checkpoint: The base.
            weights: What trained by name, where the model holds a part of it only.
        """

    def export(self, model: Any, folder: Path, checkpoint: Checkpoint, weights: dict[str, Any] | None = None) -> Path:
        """`save` into `folder/export_name`, replaced as a whole: nothing half-written is left under that name."""
        target = folder / self.export_name
        temporary = folder / f"{self.export_name}.partial"
        shutil.rmtree(temporary, ignore_errors=True)
        self.save(model, temporary, checkpoint, weights)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        return target


def half_or_full(precision: str) -> torch.dtype:
    """Type for weights that do not train: they need no more bits than the arithmetic has."""
    import torch

    if precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision.startswith("16") else torch.float32
