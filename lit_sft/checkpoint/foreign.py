"""Weights that something else wrote, packed by a quantizer or under the names of a wrapper, called what they are."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_sft.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from lit_sft.checkpoint.weights import StoredTensor

log = logging.getLogger(__name__)

PACKED = {
    ".absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "FP8 or compressed-tensors",
    ".weight_scale_inv": "FP8",
    "_proj_blocks": "MXFP4",
}
"""Endings of tensors that only packed weights have, and what packs them."""

WRAPPERS = {
    "base_model.model.": (
        "PEFT, with adapters that are not merged",
        "model.merge_and_unload().save_pretrained(FOLDER)",
    ),
    ".lora_": ("PEFT, with adapters that are not merged", "model.merge_and_unload().save_pretrained(FOLDER)"),
    ".base_layer.": ("PEFT, with adapters that are not merged", "model.merge_and_unload().save_pretrained(FOLDER)"),
    "_orig_mod.": ("torch.compile", "model._orig_mod.save_pretrained(FOLDER)"),
    "_fsdp_wrapped_module.": ("FSDP", "a full state dict with save_pretrained"),
    "_checkpoint_wrapped_module.": ("a checkpoint wrapper", "the inner model with save_pretrained"),
    "module.": ("DistributedDataParallel, DataParallel or DeepSpeed", "model.module.save_pretrained(FOLDER)"),
}
"""Parts of tensor names that a wrapper adds, whose they are and how to write the model without it."""

RETAKE = "Take the checkpoint in half precision; QLoRA quantizes it while it loads"


def settle_quantization(folder: Path, config: PreTrainedConfig, tensors: Mapping[str, StoredTensor]) -> None:
    """Take a `quantization_config` out of a configuration if it says nothing of the weights.

    Tools that merge an adapter into a quantized base leave it behind beside plain weights. Networks that bitsandbytes
    packed are read as they are: `save_model` writes such.

    Raises:
        CheckpointError: If the weights are packed in another way.
    """
    file, packed = folder / "config.json", _packed(tensors)
    stated = getattr(config, "quantization_config", None)
    if packed is None:
        if stated is not None:
            log.warning("%s: quantization_config is ignored, for the weights are not quantized; remove it", file)
        vars(config).pop("quantization_config", None)
        return
    name, method = packed
    where = f"{tensors[name].file} holds weights packed by {method} (tensor {name})"
    said = stated.get("quant_method") if isinstance(stated, dict) else None
    if method != "bitsandbytes":
        raise CheckpointError(f"{where}, which cannot be tuned. {RETAKE}")
    if said != "bitsandbytes":
        raise CheckpointError(
            f"{where}, but config.json has no quantization_config of bitsandbytes that says how. {RETAKE}"
        )


def wrapper_of(names: Iterable[str], wanted: Iterable[str] = ()) -> str | None:
    """What a wrapper added to names of tensors, in words with the remedy; None if none did.

    Args:
        names: Those in the file.
        wanted: Those that it lacks: what stands before one of them throughout is a wrapper's, too.
    """
    names = list(names)
    for mark, (wrapper, remedy) in WRAPPERS.items():
        found = next((name for name in names if name.startswith(mark) or (mark != "module." and mark in name)), None)
        if found:
            return f"its names have {mark!r} in them ({found}): it is the state of {wrapper}. Write it with {remedy}"
    for name in wanted:
        if found := next((each for each in names if each.endswith(f".{name}")), None):
            prefix = found.removesuffix(name)
            return (
                f"its names begin with {prefix!r} ({found}): it is the state of a model that holds this one. Write "
                f"the inner model alone with save_pretrained, or take {prefix!r} off the names"
            )
    return None


def inner_state(content: dict[str, Any]) -> str | None:
    """The key of a training checkpoint under which the tensors stand."""
    return next((str(key) for key, value in content.items() if isinstance(value, dict) and _has_tensors(value)), None)


def refuse_dropped_lora(network: PreTrainedModel, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """A hook of `load_state_dict`: no part of an adapter is left out, as peft would with a warning only.

    Raises:
        ConfigError: If a tensor of it belongs to no module, as those of the original's fused ones do.
    """
    own = {f"{prefix}{name}" for name, _ in network.named_modules()}
    names = [name for name in state if name.startswith(prefix) and ".lora_" in name]
    if lost := [name for name in names if name.partition(".lora_")[0] not in own]:
        raise ConfigError(
            f"{len(lost)} of {len(names)} tensors of the adapter belong to no module of this network, the first "
            f"{lost[0]}: peft would leave them out. Adapters of the original modules load by lit_sft.tuning.lora: "
            "LoRA(adapter=FOLDER).load(checkpoint, '32-true')"
        )


def _has_tensors(value: dict[Any, Any]) -> bool:
    return any(hasattr(each, "untyped_storage") for each in value.values())


def _packed(tensors: Mapping[str, StoredTensor]) -> tuple[str, str] | None:
    """The first tensor that shows it, and what packs weights so."""
    for name in tensors:
        if method := next((method for ending, method in PACKED.items() if name.endswith(ending)), None):
            return name, method
    for name, tensor in tensors.items():
        if name.endswith(".weight") and not tensor.is_floating_point():
            return name, f"a quantizer as {str(tensor.layout.dtype).removeprefix('torch.')}"
    return None
