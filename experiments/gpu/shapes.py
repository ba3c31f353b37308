"""Released shapes with random weights, made on the device: nothing is downloaded, little is read from disk."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_sft.checkpoint.opening import Checkpoint, open_checkpoint, released_family
from lit_sft.checkpoint.tiny import demo_texts
from lit_sft.families._base import TinySize

NUM_CONVERSATIONS = {"real": 3000, "tiny": 80}
MEDIAN_LENGTH = {"real": 600, "tiny": 60}
"""Characters of an answer."""


def device() -> torch.device:
    """Where everything is measured."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def synchronize() -> None:
    """Wait for what the device has been asked to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def write_checkpoint(folder: Path, name: str, size: str) -> Path:
    """A folder that describes a released model; its weights are tiny, and replaced by `make_random`.

    Args:
        folder: In which to write.
        name: Of the released model's folder, such as Baichuan-7B.
        size: `real`, or `tiny` for a small one of the same family.
    """
    family = released_family(name)
    assert family, f"no family says that it released {name}"
    target = folder / name
    if not target.exists():
        target.mkdir()
        torch.manual_seed(0)
        family.write_tiny(
            target, demo_texts(), TinySize(hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4)
        )
        if size == "real":
            config = target / "config.json"
            content = json.loads(config.read_text(encoding="utf-8"))
            config.write_text(json.dumps(content | family.released[name]), encoding="utf-8")
    return target


def write_conversations(file: Path, size: str) -> Path:
    """Conversations of one round, of the words of the demo corpus; lengths are log-normal."""
    drawn, texts = random.Random(0), [text for text in demo_texts() if text.strip()]
    with file.open("w", encoding="utf-8") as lines:
        for _ in range(NUM_CONVERSATIONS[size]):
            answer = ""
            wanted = MEDIAN_LENGTH[size] * drawn.lognormvariate(0, 0.7)
            while len(answer) < wanted:
                answer += drawn.choice(texts)
            messages = [{"role": "user", "content": drawn.choice(texts)}, {"role": "assistant", "content": answer}]
            lines.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return file


def make_random() -> None:
    """From now on checkpoints give random networks on the device in place of what their files hold."""
    Checkpoint.load_model = random_network  # type: ignore[method-assign]


def random_network(self: Checkpoint, dtype: torch.dtype | None = None, quantization: Any = None) -> Any:
    """In place of `Checkpoint.load_model`: the network of config.json, in evaluation mode."""
    with device():
        network = self.family.build()
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype or torch.float32)
    if quantization is not None:
        _quantize(network, quantization)
    return network.eval()


def _quantize(network: Any, quantization: Any) -> None:
    """Pack the linear layers of the blocks in 4 bits, as loading a checkpoint does."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    kinds = set(network._no_split_modules)
    blocks = [module for module in network.modules() if type(module).__name__ in kinds]
    for block in blocks:
        for name, layer in list(block.named_modules()):
            if not isinstance(layer, nn.Linear):
                continue
            options = {
                "quant_type": quantization.bnb_4bit_quant_type,
                "compress_statistics": quantization.bnb_4bit_use_double_quant,
            }
            packed = Linear4bit(
                layer.in_features,
                layer.out_features,
                bias=layer.bias is not None,
                compute_dtype=quantization.bnb_4bit_compute_dtype,
                device="meta",
                **options,
            )
            packed.weight = Params4bit(layer.weight.data, requires_grad=False, **options).to(layer.weight.device)
            packed.bias = layer.bias
            block.set_submodule(name, packed)
    network.is_loaded_in_4bit = True


def open_random(folder: Path, name: str, size: str) -> Checkpoint:
    """A checkpoint of which `load_model` gives a random network."""
    make_random()
    return open_checkpoint(write_checkpoint(folder, name, size))


def write_pairs(file: Path, size: str) -> Path:
    """Two answers to each prompt, the first chosen."""
    conversations = write_conversations(file.with_suffix(".conversations"), size)
    with conversations.open(encoding="utf-8") as lines, file.open("w", encoding="utf-8") as written:
        said = [[message["content"] for message in json.loads(line)["messages"]] for line in lines]
        for (prompt, chosen), (_, rejected) in zip(said[::2], said[1::2], strict=False):
            record = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            written.write(json.dumps(record, ensure_ascii=False) + "\n")
    return file
