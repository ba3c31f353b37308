"""The layers that LoRA shall adapt, as somebody names them who has trained the model with peft."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lit_sft.errors import ConfigError, accepted
from lit_sft.tuning._adapter_file import ALL_LINEAR
from lit_sft.tuning._original_names import original_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = re.compile(r"[\w.-]+")


def check_targets(targets: Sequence[str], network: PreTrainedModel) -> None:
    """Every target must name a linear layer; peft is content if one of them does.

    Args:
        targets: Names of modules, or the ends of such behind a dot.
        network: May be on "meta".

    Raises:
        ConfigError: Naming the first that does not, and what to write in its place.
    """
    names = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
    for target in targets:
        if any(_is_named(name, target) for name in names):
            continue
        valid = {name.rpartition(".")[2] for name in names}
        if not NAME.fullmatch(target):
            why = "is not the name of a layer; regular expressions are not taken"
        elif parts := _parts_of(target, network):
            raise ConfigError(
                f"LoRA target {target!r} of the original code is {', '.join(parts)} in this network; give "
                f"{'that' if len(parts) == 1 else 'those'}"
            )
        else:
            why = "matches no linear layer"
        raise ConfigError(f"LoRA target {target!r} {why}. {accepted(target, valid | {ALL_LINEAR})}")


def network_targets(targets: Sequence[str], network: PreTrainedModel) -> tuple[str, ...]:
    """Targets by the names of the network: those of an adapter may be names of the original code (`W_pack`).

    Args:
        targets: Names of modules, or the ends of such behind a dot.
        network: May be on "meta".
    """
    names = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
    found = (
        [target] if any(_is_named(name, target) for name in names) else _parts_of(target, network) for target in targets
    )
    return tuple(dict.fromkeys(name for each in found for name in each))


def _is_named(module: str, target: str) -> bool:
    return module == target or module.endswith(f".{target}")


def _parts_of(target: str, network: PreTrainedModel) -> list[str]:
    """The last part of the name of each module that a linear layer of the original code became."""
    parts = [
        part.module
        for original, found in original_modules(network, of_forerunner=True).items()
        for part in found
        if _is_named(original, target) and isinstance(network.get_submodule(part.module), torch.nn.Linear)
    ]
    return list(dict.fromkeys(module.rpartition(".")[2] for module in parts))
