"""A prefix on disk, as the fine-tuning scripts of ChatGLM-6B and ChatGLM2-6B leave it.

    pytorch_model.bin   transformer.prefix_encoder.embedding.weight, and with a projection trans.{0,2}.{weight,bias}
    config.json         that of the model, with pre_seq_len and prefix_projection

The script's own loader takes what begins with `transformer.prefix_encoder.` and leaves out the rest, as here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lit_sft.checkpoint.files import weight_files
from lit_sft.errors import ConfigError
from lit_sft.tuning._adapter_file import ADAPTER_CONFIG
from lit_sft.tuning._prefix import ENCODER, PrefixEncoder, PrefixSize, put_before

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lit_sft.checkpoint.opening import Checkpoint

WEIGHTS = ("pytorch_model.bin", "model.safetensors")

ORIGINAL = f"transformer.{ENCODER}."
"""Before the name of each tensor."""


@dataclass(frozen=True)
class StoredPrefix:
    """A prefix that fits the network of a checkpoint.

    Args:
        size: Sizes.
        tensors: Of its encoder, by name.
    """

    size: PrefixSize
    tensors: dict[str, torch.Tensor]

    @property
    def has_projection(self) -> bool:
        """Whether keys and values are projected."""
        return "trans.0.weight" in self.tensors

    def encoder(self, dropout: float = 0.0) -> PrefixEncoder:
        """The encoder with its weights."""
        encoder = PrefixEncoder(self.size, projection=self.has_projection, dropout=dropout)
        encoder.load_state_dict(self.tensors)
        return encoder

    def attach(self, network: PreTrainedModel, *, is_trainable: bool) -> PrefixEncoder:
        """Put it before a loaded network."""
        encoder = self.encoder().requires_grad_(is_trainable)
        put_before(network, encoder)
        return encoder


def is_prefix(folder: Path, checkpoint: Checkpoint) -> bool:
    """Whether a folder of what was trained on a checkpoint is not an adapter, so that it may be a prefix."""
    has_weights = any((folder / name).is_file() for name in WEIGHTS)
    return checkpoint.family.prefix_input is not None and has_weights and not (folder / ADAPTER_CONFIG).is_file()


def read_prefix(folder: Path, checkpoint: Checkpoint) -> StoredPrefix:
    """The prefix in a folder.

    Raises:
        ConfigError: If there is none, or one of another network, naming the tensor at fault.
        CheckpointError: If its file is damaged.
    """
    from lit_sft.checkpoint.weights import open_weights

    refuse_without_encoder(checkpoint)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; give one that holds a prefix (pytorch_model.bin)")
    weight_files(folder)
    stored = {
        name.removeprefix(ORIGINAL): tensor[...].float()
        for name, tensor in open_weights(folder).items()
        if name.startswith(ORIGINAL)
    }
    if "embedding.weight" not in stored:
        raise ConfigError(f"{folder} is not a prefix: its weights hold no {ORIGINAL}embedding.weight")
    size = PrefixSize.of(checkpoint.family, len(stored["embedding.weight"]))
    with torch.device("meta"):
        encoder = PrefixEncoder(size, projection=any(name.startswith("trans.") for name in stored), dropout=0.0)
    needed = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    for name in sorted(needed.keys() | stored.keys()):
        found = tuple(stored[name].shape) if name in stored else None
        if found != needed.get(name):
            raise ConfigError(
                f"prefix {folder} does not fit {checkpoint.path}: {ORIGINAL}{name} is {_said(found)}, the model needs "
                f"{_said(needed.get(name))}"
            )
        if not stored[name].isfinite().all():
            raise ConfigError(f"prefix {folder}: {ORIGINAL}{name} holds NaN or infinite numbers. Take an earlier one")
    return StoredPrefix(size, stored)


def write_prefix(folder: Path, checkpoint: Checkpoint, encoder: PrefixEncoder, weights: dict[str, Any] | None) -> None:
    """Write a prefix that `read_prefix`, and the original code, read.

    Args:
        folder: Where to.
        checkpoint: The base.
        encoder: What trained.
        weights: Its weights by their names in the network, where they are not whole in the encoder.
    """
    own = encoder.state_dict()
    if weights is not None:
        own = {name.partition(f"{ENCODER}.")[2]: weight for name, weight in weights.items() if f"{ENCODER}." in name}
    tensors = {f"{ORIGINAL}{name}": weight.detach().cpu().contiguous() for name, weight in own.items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    sizes = {"pre_seq_len": encoder.size.num_tokens, "prefix_projection": encoder.trans is not None}
    config = json.dumps({**checkpoint.config, **sizes}, indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(config + "\n", encoding="utf-8")


def refuse_without_encoder(checkpoint: Checkpoint) -> None:
    """Refuse a model whose original code knows no prefix.

    Raises:
        ConfigError: Naming it.
    """
    if checkpoint.family.prefix_input is None:
        raise ConfigError(
            f"PTuning is for ChatGLM, whose original code has a prefix encoder; {checkpoint.family.name} has none: "
            "take LoRA or QLoRA"
        )


def _said(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))
