"""A network to disk: as a checkpoint of its family, or as one that plain transformers loads without us."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from lit_sft.errors import ConfigError
from lit_sft.files import whole_folder

if TYPE_CHECKING:
    from lit_sft.families._base import Family


def save_model(
    family: Family,
    tokenizer_files: Iterable[Path],
    model: Any,
    folder: Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """A folder in the original layout with the base's tokenizer, which `open_checkpoint` recognizes.

    A quantized network is written as it is, under the network's own tensor names; it reads back to the bit.

    Args:
        family: That of the folder which `model` was loaded from.
        tokenizer_files: The files of its tokenizer.
        model: The network, adapters merged.
        folder: Where to write.
        weights: Its weights by name, where it holds a part of them only.

    Raises:
        ConfigError: If adapters are still attached.
    """
    _refuse_adapters(model)
    model.save_pretrained(folder, state_dict=weights)
    # transformers writes our class's name; the original one is what other loaders, and ours, go by.
    config = _read(folder / "config.json")
    if architectures := family.config.get("architectures"):
        _write(folder / "config.json", {**config, "architectures": architectures})
    for file in tokenizer_files:
        shutil.copy(file, folder)
    settings = folder / "tokenizer_config.json"
    if settings.is_file() and "auto_map" in (content := _read(settings)):
        del content["auto_map"]  # remote code that the copy does not hold
        _write(settings, content)


def save_native(family: Family, model: Any, folder: Path, check: Callable[[Path], None] | None = None) -> None:
    """A folder for plain `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`.

    Args:
        family: That of the folder which `model` was loaded from.
        model: The network in full or half precision, adapters merged.
        folder: Where to write; must not exist, and does not until it is complete.
        check: Looks at the folder before it has its name; what it raises leaves nothing behind.

    Raises:
        ConfigError: If no plain class computes this network, adapters are attached, it is quantized or `folder` exists.
    """
    config = family.native_config(model.config)
    if config is None:
        raise ConfigError(
            f"no class of transformers computes a {family.name}; save it in its own layout instead (docs/sharing.md)"
        )
    _refuse_adapters(model)
    if getattr(model, "hf_quantizer", None) is not None:
        raise ConfigError("a quantized network cannot be saved for plain transformers; load it with quantization=None")
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder} exists; give a folder that does not")
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    weights = model.state_dict()
    head = weights["lm_head.weight"]
    weights["lm_head.weight"] = family.plain_head(head).to(head.dtype)
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in weights.items()}
    plain.generation_config = model.generation_config
    with whole_folder(folder) as partial:
        plain.save_pretrained(partial, state_dict=weights)
        if tokenizer := family.native_tokenizer():
            tokenizer.save_pretrained(partial)
        if check:
            check(partial)


def _refuse_adapters(model: Any) -> None:
    if not isinstance(model, PreTrainedModel) or any(name.endswith(".base_layer") for name, _ in model.named_modules()):
        raise ConfigError("adapters are attached to the network; merge them first (merge_and_unload) or save those")


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
