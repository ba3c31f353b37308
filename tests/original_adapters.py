"""Adapters as the original code of the models trains them, on its fused modules."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file

from lit_sft import open_checkpoint
from lit_sft.checkpoint.opening import Checkpoint
from lit_sft.checkpoint.weights import open_weights, open_weights_file

FUSED = {
    "baichuan-7b": ("W_pack", "o_proj", "up_proj"),
    "baichuan2-13b": ("W_pack", "o_proj", "down_proj"),
    "chatglm-6b": ("query_key_value", "dense", "dense_h_to_4h"),
    "chatglm2-6b": ("query_key_value", "dense", "dense_h_to_4h"),
    "moss": ("qkv_proj", "out_proj", "fc_in"),
}
"""Names of the original code: the fused projection, the output, the feed-forward."""


def original_weights(folder: Path, targets: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The matrices on disk of the modules that `targets` name."""
    tensors = {name.removesuffix(".weight"): tensor for name, tensor in open_weights(folder).items()}
    return {name: tensor[...].float() for name, tensor in tensors.items() if name.rpartition(".")[2] in targets}


def write_adapter(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    LoraConfig(**{"r": 8, "lora_alpha": 16, "task_type": "CAUSAL_LM", **config}).save_pretrained(str(folder))
    save_file(
        {f"base_model.model.{name}": tensor.contiguous() for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


def random_adapter(folder: Path, base: Path, targets: tuple[str, ...], rank: int = 8, **config: Any) -> Path:
    """An adapter of the original modules, as their own code would have saved it."""
    tensors = {}
    for name, weight in original_weights(base, targets).items():
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, weight.shape[1]) * 0.3
        tensors[f"{name}.lora_B.weight"] = torch.randn(weight.shape[0], rank) * 0.1
        if config.get("use_dora"):
            tensors[f"{name}.lora_magnitude_vector"] = weight.norm(dim=1) * (0.5 + torch.rand(len(weight)))
    assert tensors
    return write_adapter(folder, tensors, r=rank, target_modules=list(targets), **config)


def merged_by_hand(folder: Path, base: Path, adapter: Path) -> Checkpoint:
    """The checkpoint with the update added to its matrices on disk."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    state = {name: tensor[...] for name, tensor in open_weights(base).items()}
    tensors = {name.removeprefix("base_model.model."): tensor[...] for name, tensor in open_adapter(adapter).items()}
    for name in [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith("lora_A.weight")]:
        weight = state[f"{name}.weight"].float()
        weight = weight + scale * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        if (lengths := tensors.get(f"{name}.lora_magnitude_vector")) is not None:
            weight = weight * (lengths / weight.norm(dim=1))[:, None]
        state[f"{name}.weight"] = weight
    folder.mkdir()
    for file in base.iterdir():
        if "pytorch_model" not in file.name and file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    torch.save({name: tensor.clone() for name, tensor in state.items()}, folder / "pytorch_model.bin")
    return open_checkpoint(folder)


def open_adapter(folder: Path) -> Any:
    return open_weights_file(folder / "adapter_model.safetensors")
