"""A tuning: how the base is loaded and wrapped, which weights train, and what is exported."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lit_sft.checkpoint.opening import Checkpoint
from lit_sft.errors import ConfigError
from lit_sft.files import remove_leftovers, whole_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Footprint:
    """What of a tuning decides about memory; preflight/memory.py computes with it.

    Args:
        trains_base: Whether the weights of the checkpoint train; otherwise adapters beside them do.
        rank: Of the adapters.
        targets: Names of the layers with adapters.
        dropout: Of the adapters.
        dora: Whether each adapter trains a length of each row too.
        packed_bytes: Bytes of a weight of a linear layer that is packed; None where it has the type of the arithmetic.
        scale_bytes: Bytes of scales for each packed weight.
        row_scale_bytes: Bytes of scales for each row of a packed matrix.
        trained_blocks: Decoder blocks that train, where not all of the base does.
        trains_embeddings: Whether the embedding trains, too.
        trains_head: Whether the head trains, too.
        prefix_tokens: Tokens of a prefix of keys and values.
        prefix_projection: Whether that is projected by layers that train.
    """

    trains_base: bool = False
    rank: int = 0
    targets: tuple[str, ...] = ()
    dropout: float = 0.0
    dora: bool = False
    packed_bytes: float | None = None
    scale_bytes: float = 0.0
    row_scale_bytes: float = 0.0
    trained_blocks: int | None = None
    trains_embeddings: bool = False
    trains_head: bool = False
    prefix_tokens: int = 0
    prefix_projection: bool = False


class Tuning(ABC):
    """Which weights of a checkpoint train. One file in this folder is one tuning."""

    export_name: ClassVar[str]
    """Folder of the run that receives what `export` writes."""

    exports_adapter: ClassVar[bool] = False
    """Whether that is a PEFT adapter for `load_base`, which `merge` merges and `chat` takes off; else a checkpoint."""

    stands_on_base: ClassVar[bool] = False
    """Whether what it exports is not a checkpoint of its own, but goes with that of `load_base`."""

    begins_as_base: ClassVar[bool] = True
    """Whether the network computes as the checkpoint, or as the adapter to start from, before anything trained."""

    quantizes_base: ClassVar[bool] = False
    """Whether `load_base` differs from the weights of the checkpoint."""

    keeps_reference: ClassVar[bool] = False
    """Whether the network can answer as before it trained, at little cost."""

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

    def load_base(self, checkpoint: Checkpoint, precision: str) -> PreTrainedModel:
        """The network of the checkpoint, as adapters of this tuning train beside it."""
        return checkpoint.load_model(dtype=half_or_full(precision))

    @abstractmethod
    def footprint(self, family_targets: Sequence[str]) -> Footprint:
        """What it asks of the memory.

        Args:
            family_targets: Layers that the family adapts unless told otherwise.
        """

    def choices(self) -> dict[str, str | float]:
        """What runs of this tuning are compared by, beside its name: `alpha`, `rank`, and `kind` of a base."""
        return {}

    def quantization(self) -> dict[str, Any] | None:
        """Options by which QLoRA loads the same base; None where it is not quantized."""
        return None

    def lr_multiplier(self, name: str) -> float:
        """Learning rate of the parameter `name`, as a multiple of the optimizer's."""
        return 1.0

    @abstractmethod
    def causal_lm(self, model: Any) -> PreTrainedModel:
        """The transformers network inside what `load` returned, adapters in place."""

    def base_of(self, model: Any) -> AbstractContextManager[Any]:
        """While it is open, `model` before anything trained answers as its checkpoint does."""
        return nullcontext()

    def keep_reference(self, model: Any) -> None:
        """Keep the network as it is before it trains, for `reference_of`, if the tuning `keeps_reference`."""
        return

    def reference_of(self, model: Any) -> AbstractContextManager[Any]:
        """While it is open, `model` answers as when `keep_reference` was called.

        Only where no gradients are recorded.

        Raises:
            ConfigError: If the tuning does not `keeps_reference`: its weights are no longer what they were.
        """
        raise ConfigError(
            f"{type(self).__name__} keeps no model from before training that could be asked again: take LoRA or QLoRA, "
            "or an objective without a reference"
        )

    def add(
        self, model: Any, name: str, checkpoint: Checkpoint, *, folder: Path | None = None, is_trainable: bool = False
    ) -> None:
        """Put a further adapter beside what trains, on the same base; only where the tuning `exports_adapter`.

        Args:
            model: What `load` returned.
            name: Of the adapter, without a dot.
            checkpoint: The base.
            folder: Of the adapter; if not given, it computes as the model does before anything trained.
            is_trainable: Whether it trains, too.
        """
        raise self._without_adapters()

    def use(self, model: Any, name: str | None) -> None:
        """Let an added adapter compute from now on, that of the tuning (`default`), or the base alone (None).

        The one that is in use in a forward pass must be in its backward pass, which may compute again.
        """
        raise self._without_adapters()

    def using(self, model: Any, name: str | None) -> AbstractContextManager[Any]:
        """The same while it is open; only where no gradients are recorded."""
        raise self._without_adapters()

    def _without_adapters(self) -> ConfigError:
        return ConfigError(
            f"{type(self).__name__} has no adapters, beside which another could stand: take LoRA or QLoRA"
        )

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

    def export(
        self,
        model: Any,
        folder: Path,
        checkpoint: Checkpoint,
        weights: dict[str, Any] | None = None,
        *,
        beside: Callable[[Path], None] | None = None,
    ) -> Path:
        """`save` into `folder/export_name`, replaced as a whole: nothing half-written is left under that name.

        Args:
            model: What `load` returned.
            folder: Of the run.
            checkpoint: The base.
            weights: What trained by name, where the model holds a part of it only.
            beside: Writes more into the same folder.
        """
        target = folder / self.export_name
        remove_leftovers(target)
        with whole_folder(target) as partial:
            self.save(model, partial, checkpoint, weights)
            if beside:
                beside(partial)
            shutil.rmtree(target, ignore_errors=True)
        return target


def half_or_full(precision: str) -> torch.dtype:
    """Type for weights that do not train: they need no more bits than the arithmetic has."""
    import torch

    if precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision.startswith("16") else torch.float32
