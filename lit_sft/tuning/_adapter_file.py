"""A PEFT adapter folder as it was written, by whatever program: read without the hub, and refused where it is not LoRA.

Only headers are read here. Where the tensors belong is the matter of `_original_names` and `_adapter_loading`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_sft.checkpoint.files import refuse_pointer
from lit_sft.errors import ConfigError

if TYPE_CHECKING:
    from peft import LoraConfig

    from lit_sft.checkpoint.weights import StoredTensor

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
"""What peft puts before every name."""

ALL_LINEAR = "all-linear"
"""What peft calls all linear layers but the head."""

UNUSUAL = {
    f"{PREFIX}{PREFIX}": "an adapter on an adapter, or under peft's prefix twice",
    ".default.": "the state of a PeftModel, not the file of an adapter",
    ".base_layer.": "the state of a PeftModel with the weights of its base, not the file of an adapter",
    "_orig_mod.": "the state of a network of torch.compile",
    "module.base_model.": "the state of DistributedDataParallel or DeepSpeed",
}
"""Parts of names that are not those of peft's files, and where they are from."""

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initializations that subtract from the base what they put into the adapter, so that it fits a changed base only."""

BEYOND_TENSORS = ("alora_invocation_tokens", "arrow_config", "layer_replication", "target_parameters")
"""Options that change how peft computes, or with which layers, in ways that a network of ours does not follow."""


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA adapter on disk.

    Args:
        folder: Where it stands.
        config: Its adapter_config.json.
        tensors: By the name of the module and part, without peft's prefix; none is empty.
    """

    folder: Path
    config: LoraConfig
    tensors: dict[str, StoredTensor]


def read_adapter(folder: Path) -> AdapterFile:
    """Open the adapter in `folder`.

    Raises:
        ConfigError: If it is not a folder with a LoRA adapter, or an adapter that needs more than its tensors.
        CheckpointError: If the weights are damaged or hold anything but tensors.
    """
    from lit_sft.checkpoint.weights import open_weights_file

    content = read_adapter_config(folder)
    tensors = open_weights_file(_weights_file(folder))
    if not tensors:
        raise ConfigError(f"adapter {folder} holds no tensors; save it again")
    if empty := [name for name, tensor in tensors.items() if 0 in tensor.shape]:
        raise ConfigError(
            f"adapter {folder}: {len(empty)} of {len(tensors)} tensors are empty, the first {empty[0]}: it was saved "
            "under ZeRO-3 without gathering the weights; save it again (stage3_gather_16bit_weights_on_model_save)"
        )
    config = _lora_config(folder, content)
    _refuse_biases(folder, config, tensors)
    for name, tensor in tensors.items():
        if strange := next((part for part in UNUSUAL if part in name), None):
            raise ConfigError(
                f"adapter {folder}: the tensor {name} has {strange!r} in its name: it is {UNUSUAL[strange]}. No tensor "
                "of that name belongs to this model; save it with peft's save_pretrained"
            )
        if not name.startswith(PREFIX):
            raise ConfigError(
                f"adapter {folder}: the tensor {name} does not begin with {PREFIX}, as peft names them: no tensor of "
                "that name belongs to this model; save it with peft's save_pretrained"
            )
        if not tensor.is_floating_point():
            raise ConfigError(f"adapter {folder}: the tensor {name} holds {tensor.layout.dtype}, not weights")
    return AdapterFile(folder, config, {k.removeprefix(PREFIX): v for k, v in tensors.items()})


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The adapter_config.json in `folder`, which is of a LoRA adapter.

    Raises:
        ConfigError: If there is none, or it is of another kind.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"adapter {folder} is not a folder; adapters are not downloaded: give a folder that holds {ADAPTER_CONFIG}"
        )
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        raise ConfigError(f"adapter {folder} is not a PEFT folder: it holds no {ADAPTER_CONFIG}")
    refuse_pointer(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file} does not hold a JSON object")
    if content.get("enable_lora"):
        raise ConfigError(
            f"{file} was made by peft before 0.3 (key enable_lora), which computed a fused layer in another way; "
            "merge it with the peft that made it, or train it again"
        )
    kind = content.get("peft_type")
    if kind != "LORA":
        kind = kind if "peft_type" in content and kind else "unknown (no peft_type)"
        raise ConfigError(f"{file}: adapters of type {kind} are not supported; LORA (with rsLoRA and DoRA) is")
    if not content.get("target_modules"):
        raise ConfigError(f"{file} names no target_modules; give the layers that the adapter was trained on")
    return content


def _refuse_biases(folder: Path, config: LoraConfig, tensors: Iterable[str]) -> None:
    """Biases that were trained stand in place of those of the base, which cannot be had back by taking LoRA off."""
    if config.bias == "none":
        return
    saved = tuple(f".{name}.bias" for name in config.modules_to_save or ())
    for name in tensors:
        if name.endswith(".bias") and ".lora_" not in name and not name.endswith(saved):
            raise ConfigError(
                f"adapter {folder} says bias: {config.bias} and holds {name}: biases that were trained in place of "
                "those of the base are not supported. Merge it with the program that made it (merge_and_unload), and "
                "give the merged checkpoint"
            )
    config.bias = "none"  # the base has none


def _weights_file(folder: Path) -> Path:
    for name in ADAPTER_WEIGHTS:
        if (folder / name).is_file():
            refuse_pointer(folder / name)
            return folder / name
    raise ConfigError(f"adapter {folder} holds no {' or '.join(ADAPTER_WEIGHTS)}; is the download complete?")


def _lora_config(folder: Path, content: dict[str, Any]) -> LoraConfig:
    """Keys that peft does not know, and so ignores, must say nothing."""
    from peft import LoraConfig

    file = folder / ADAPTER_CONFIG
    for key in BEYOND_TENSORS:
        if content.get(key):
            raise ConfigError(f"{file}: adapters with {key} are not supported")
    start = str(content.get("init_lora_weights")).lower()
    if start.startswith(CHANGES_BASE):
        raise ConfigError(
            f"{file} says init_lora_weights {start}, which trains on a changed base; save the adapter as plain LoRA "
            "(path_initial_model_for_weight_conversion of peft's save_pretrained)"
        )
    known = {field.name for field in fields(LoraConfig)}
    for key in content.keys() - known:
        if content[key]:
            raise ConfigError(
                f"{file} has {key}: {json.dumps(content[key])}, which this peft does not know; upgrade it"
            )
    # The head of a classifier is not part of our networks; its tensors then find no place.
    given = {key: value for key, value in content.items() if key in known} | {"task_type": "CAUSAL_LM"}
    _check_values(file, content)
    try:
        return LoraConfig(**given)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ConfigError(f"{file} is not a configuration of LoRA: {str(error).partition(chr(10))[0]}") from None


def _check_values(file: Path, content: dict[str, Any]) -> None:
    """What peft takes as it comes, to fail where it computes with it."""
    for key in ("r", "lora_alpha"):
        _check_number(file, key, content.get(key, 8))
    for key in ("use_rslora", "use_dora"):
        if not isinstance(content.get(key) or False, bool):
            raise ConfigError(f"{file}: {key} is {json.dumps(content[key])}; it must be true or false")
    for key in ("rank_pattern", "alpha_pattern"):
        numbers = content.get(key) or {}
        if not isinstance(numbers, dict):
            raise ConfigError(f"{file}: {key} must be an object of names and numbers")
        for name, value in numbers.items():
            _check_expression(file, key, name)
            _check_number(file, f"{key} of {name}", value)
    for key, rank in (("r", content.get("r", 8)), *(content.get("rank_pattern") or {}).items()):
        if rank != int(rank):
            raise ConfigError(f"{file}: the rank {rank} of {key} must be a whole number")
    targets = content["target_modules"]
    if isinstance(targets, str):
        _check_expression(file, "target_modules", targets)
    elif not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise ConfigError(f"{file}: target_modules must be a list of names, or a regular expression")


def _check_number(file: Path, key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigError(f"{file}: {key} is {json.dumps(value)}; it must be a number above 0")


def _check_expression(file: Path, key: str, text: str) -> None:
    try:
        re.compile(text)
    except re.error as error:
        raise ConfigError(f"{file}: {key} has {text!r}, which is not a regular expression: {error}") from None
