"""Several adapters on one base: which of them computes.

peft's own switches freeze adapters: `set_adapter` all others, and the end of `disable_adapter` all but the active one.
Of two adapters that train, one would stop to learn without a word. Here nothing but the choice changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

if TYPE_CHECKING:
    from peft import PeftModel

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


def add_frozen_copy(model: PeftModel, name: str) -> None:
    """A second adapter with the weights that the first has now, which do not train."""
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    model.add_adapter(name, model.peft_config[POLICY])
    use(model, POLICY)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in trained)
    parameters = dict(model.named_parameters())
    copies: dict[str, Any] = {key: p for key, p in parameters.items() if f".{name}." in key or key.endswith(f".{name}")}
    with torch.no_grad():
        for key, copy in copies.items():
            copy.data = parameters[_of(POLICY, name, key)].detach().clone()


def _of(adapter: str, name: str, key: str) -> str:
    head, _, tail = key.rpartition(f".{name}")
    return f"{head}.{adapter}{tail}"


def _layers(model: PeftModel) -> list[BaseTunerLayer]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
