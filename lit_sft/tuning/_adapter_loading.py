"""An adapter on a network: every tensor of its file has a place, and every place a tensor, or nothing is loaded."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, PeftModelForCausalLM
from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict

from lit_sft.checkpoint.files import is_exported
from lit_sft.errors import ConfigError
from lit_sft.tuning._adapter_file import PREFIX, AdapterFile, read_adapter
from lit_sft.tuning._original_names import Piece, to_network, to_original
from lit_sft.tuning._switching import add

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lit_sft.checkpoint.opening import Checkpoint


@dataclass(frozen=True)
class PlacedAdapter:
    """An adapter that was compared with the network of a checkpoint, down to the shape of each tensor.

    Args:
        file: As it stands on disk, perhaps under the names of the original code.
        config: For the network.
        pieces: By the name of a tensor in the network's adapter, where it stands in the file.
    """

    file: AdapterFile
    config: LoraConfig
    pieces: dict[str, Piece]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of the network's adapter by name.

        Raises:
            ConfigError: If one holds what is not a number.
        """
        read = {name: tensor[...] for name, tensor in self.file.tensors.items()}
        if broken := next((name for name, tensor in read.items() if not tensor.isfinite().all()), None):
            raise ConfigError(
                f"adapter {self.file.folder}: the tensor {broken} holds NaN or infinite numbers: its training went "
                "wrong. Take an earlier one"
            )
        return {
            name: read[piece.source] if piece.rows is None else read[piece.source][piece.rows]
            for name, piece in self.pieces.items()
        }

    def attach(self, network: PreTrainedModel, *, is_trainable: bool) -> PeftModelForCausalLM:
        """The loaded network with the adapter, its layers replaced in place."""
        self.config.inference_mode = not is_trainable
        wrapped = PeftModelForCausalLM(network, self.config)
        set_peft_model_state_dict(wrapped, {f"{PREFIX}{name}": tensor for name, tensor in self.tensors().items()})
        return wrapped

    def merged(self, wrapped: PeftModelForCausalLM) -> PreTrainedModel:
        """What `attach` returned as a plain network, with the adapter in its weights.

        Raises:
            ConfigError: If a layer has no bias that could take in the adapter's.
        """
        for name in self.pieces:
            module, _, kind = name.partition(".lora_B.")
            if kind != "bias":
                continue
            layer: Any = wrapped.get_submodule(f"{PREFIX}{module}")
            if layer.base_layer.bias is None:
                raise ConfigError(
                    f"adapter {self.file.folder} cannot be merged: it has a bias for {module}, which has none "
                    "(lora_bias). Give it beside its base, as --adapter"
                )
        network: PreTrainedModel = wrapped.merge_and_unload()
        return network

    def add_to(self, model: PeftModel, name: str, *, is_trainable: bool) -> None:
        """A further adapter on a network that has one, which drops nothing."""
        self.config.lora_dropout = 0.0
        add(model, name, self.config, is_trainable=is_trainable)
        set_peft_model_state_dict(
            model, {f"{PREFIX}{key}": tensor for key, tensor in self.tensors().items()}, adapter_name=name
        )

    def original(self, checkpoint: Checkpoint) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
        """The adapter as one of the original modules: its configuration, and its tensors by name.

        Raises:
            ConfigError: If there is none with the same effect.
        """
        network = checkpoint.family.skeleton()
        try:
            config, tensors = to_original(self.config, self.tensors(), network)
        except ConfigError as error:
            raise ConfigError(f"adapter {self.file.folder} has no form under the original names: {error}") from None
        config.base_model_name_or_path = str(checkpoint.path.resolve())
        config.inference_mode = True
        return config, tensors


def place_adapter(folder: Path, checkpoint: Checkpoint) -> PlacedAdapter:
    """Compare the adapter in `folder` with the network of a checkpoint; no weights are read.

    Raises:
        ConfigError: If it is not a LoRA adapter, or not one for this network, naming the first tensor at fault.
        CheckpointError: If its file is damaged.
    """
    if is_exported(checkpoint.path):
        raise ConfigError(
            f"{checkpoint.path} is an exported graph, which takes no adapter: export the checkpoint that it was made "
            f"of with --adapter {folder}"
        )
    file = read_adapter(folder)
    network = checkpoint.family.skeleton()
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    try:
        config, pieces = to_network(file.config, shapes, network)
    except ConfigError as error:
        raise ConfigError(f"adapter {folder} does not fit {checkpoint.path}: {error}") from None
    placed = PlacedAdapter(file, config, pieces)
    _compare(placed, network, checkpoint)
    return placed


def _compare(placed: PlacedAdapter, network: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """What peft makes of the configuration, on "meta", has exactly these tensors."""
    misfit = f"adapter {placed.file.folder} does not fit {checkpoint.path}"
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped: Any = PeftModelForCausalLM(network, placed.config, low_cpu_mem_usage=True)
            expected = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    except Exception as error:  # peft has an error of its own for each option that does not suit a network
        raise ConfigError(f"{misfit}: {str(error).partition(chr(10))[0]}") from None
    places = {name.removeprefix(PREFIX): tensor.shape for name, tensor in expected.items()}
    for name, piece in sorted(placed.pieces.items()):
        if name not in places:
            rows = piece.shape(placed.file.tensors[piece.source].shape)
            raise ConfigError(f"{misfit}: the tensor {piece.source} has no place: {_beside(name, rows, network)}")
        shape = piece.shape(placed.file.tensors[piece.source].shape)
        if shape != tuple(places[name]):
            needed = f"the model needs {list(places[name])}{_hint(name)}"
            raise ConfigError(f"{misfit}: the tensor {piece.source} is {list(shape)}, {needed}")
    if missing := sorted(places.keys() - placed.pieces.keys()):
        raise ConfigError(
            f"{misfit}: it lacks {len(missing)} of {len(places)} tensors, the first {missing[0]}, which its "
            "configuration asks for"
        )


def _beside(name: str, shape: tuple[int, ...], network: PreTrainedModel) -> str:
    """Why a tensor may stand in a file whose configuration does not name it."""
    if "lora_" in name:
        return "its configuration does not name it"
    own = dict(network.named_parameters()).get(name)
    if own is not None and tuple(own.shape) != shape and _hint(name):
        return f"it is {list(shape)}, in the model {list(own.shape)}{_hint(name)}"
    return (
        "it is a weight of the base. Save the adapter with save_pretrained(FOLDER, save_embedding_layers=False), or, "
        "if that weight was trained, with modules_to_save"
    )


def _hint(name: str) -> str:
    is_vocabulary = name.endswith(".weight") and "lora_" not in name and ("embed" in name or "head" in name)
    return (
        ": it was trained with a resized vocabulary, so it needs the checkpoint of that size" if is_vocabulary else ""
    )
