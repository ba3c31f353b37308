"""Several adapters on one base: how one is added, and which of them computes.

peft's own switches freeze adapters: `add_adapter` and `set_adapter` all others, and the end of `disable_adapter` all
but the active one. Of two adapters that train, one would stop to learn without a word. Here an addition leaves the
others as they are, and of a switch nothing but the choice changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

POLICY = "default"
"""Name of the adapter that trains; peft's own, so that its folder opens anywhere."""

REFERENCE = "reference"
"""Name of the frozen copy of the adapter with which training began."""


def use(model: PeftModel, name: str | None) -> None:
    """Let the adapter of this name compute from now on, or the base alone.

    With gradient checkpointing the backward pass computes again, with the adapter that is in use then: it must be the
    one of the forward pass.
    """
    for layer in _layers(model):
        layer._disable_adapters = name is None
        if name is not None:
            layer._active_adapter = [name]


@contextmanager
def using(model: PeftModel, name: str | None) -> Iterator[None]:
    """The same while it is open.

    Raises:
        RuntimeError: Where gradients are recorded, for the backward pass would come after it is closed.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("an adapter cannot be switched for a while where gradients are recorded: use torch.no_grad")
    before = [(layer, layer._active_adapter, layer._disable_adapters) for layer in _layers(model)]
    use(model, name)
    try:
        yield
    finally:
        for layer, active, is_disabled in before:
            layer._active_adapter, layer._disable_adapters = active, is_disabled


def add(model: PeftModel, name: str, config: LoraConfig, *, is_trainable: bool) -> None:
    """A fresh adapter beside the others, which train or not as before; the policy's computes."""
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    model.add_adapter(name, config)
    use(model, POLICY)
    added = weights_of(model, name).values()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in trained)
    for parameter in added:
        parameter.requires_grad_(is_trainable)
    for layer in _layers(model):
        # peft measured the rows before it made the adapters float32, with the rounding of half precision.
        if isinstance(layer, LoraLayer) and name in layer.lora_variant:
            layer.lora_variant[name].init(layer, name)
    cast_inputs(model)


def add_copy(model: PeftModel, name: str, *, is_trainable: bool = False) -> None:
    """A further adapter with the weights that the policy's has now."""
    config = model.peft_config[POLICY]
    add(model, name, config, is_trainable=is_trainable)  # type: ignore[arg-type]  # there are no others than LoRA
    originals = dict(model.named_parameters())
    with torch.no_grad():
        for key, copy in weights_of(model, name).items():
            copy.data = originals[_of(POLICY, name, key)].detach().clone()


def weights_of(model: PeftModel, name: str) -> dict[str, Any]:
    """The parameters of an adapter by their names in the model."""
    return {key: p for key, p in model.named_parameters() if is_of(name, key)}


def is_of(name: str, key: str) -> bool:
    """Whether a parameter of this key belongs to the adapter of this name."""
    return re.search(rf"\.lora_\w+\.{name}(\.|$)", key) is not None


def cast_inputs(model: PeftModel) -> None:
    """Where autocast converts, let it; peft converts inputs of adapters to float32, only to be undone."""
    for layer in _layers(model):
        if not isinstance(layer, LoraLayer):
            continue
        # DoRA computes with the weights beside the input: the lengths of rows in float32, as they were measured.
        if layer.lora_variant:
            vars(layer).pop("_cast_input_dtype", None)
        else:
            layer._cast_input_dtype = _unless_autocast  # type: ignore[method-assign]


def _unless_autocast(x: Any, dtype: torch.dtype) -> Any:
    return x if x is None or torch.is_autocast_enabled(x.device.type) else x.to(dtype)


def _of(adapter: str, name: str, key: str) -> str:
    head, _, tail = key.rpartition(f".{name}")
    return f"{head}.{adapter}{tail}"


def _layers(model: PeftModel) -> list[BaseTunerLayer]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
