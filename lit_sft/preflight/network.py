"""What a network consists of, counted without its weights: the input of the formulas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from lit_sft.families._base import Family


class LinearLayer(NamedTuple):
    """A linear layer of a decoder block, by its name there and by that of the module of the original that it was."""

    name: str
    original_name: str
    inputs: int
    outputs: int

    def is_named(self, target: str) -> bool:
        """Whether a target of LoRA means it; adapters of the original code have the names that it had there."""
        return any(f".{name}".endswith(f".{target}") for name in (self.name, self.original_name))


@dataclass(frozen=True)
class NetworkSize:
    """Counts of a network.

    Args:
        num_parameters: All of them.
        num_root_parameters: Those outside the decoder blocks: embedding, head, last norm.
        linear_layers: Of one decoder block.
        num_layers: Decoder blocks, all alike.
        num_heads: Attention heads.
        hidden_size: Width of the residual stream.
        vocabulary: Outputs of the head.
        is_gated: Whether the feed-forward layer multiplies two branches.
        materializes_attention: Whether the scores [heads, T, T] are held in memory.
        has_plain_head: Whether the head is a linear layer and no more.
        cache_width: Numbers that a token leaves in the cache of a block, keys and values; 6% less than Baichuan-13B's,
            which stores its positions there.
        prefix_input_size: Width of a token of a prefix before its projection; 0 where the original has none.
    """

    num_parameters: int
    num_root_parameters: int
    linear_layers: tuple[LinearLayer, ...]
    num_layers: int
    num_heads: int
    hidden_size: int
    vocabulary: int
    is_gated: bool
    materializes_attention: bool
    has_plain_head: bool
    cache_width: int
    prefix_input_size: int = 0

    @property
    def num_linear_parameters(self) -> int:
        """Weights of all linear layers inside the blocks: what a quantized base packs."""
        return self.num_layers * sum(layer.inputs * layer.outputs for layer in self.linear_layers)

    @property
    def num_block_parameters(self) -> int:
        """Parameters of one decoder block."""
        return (self.num_parameters - self.num_root_parameters) // self.num_layers

    @property
    def widest(self) -> int:
        """Width of the feed-forward layer."""
        return max(layer.inputs for layer in self.linear_layers)

    def adapted(self, targets: Sequence[str]) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear layers of one block that LoRA adapts."""
        adapted = (layer for layer in self.linear_layers if any(map(layer.is_named, targets)))
        return [(layer.inputs, layer.outputs) for layer in adapted]


def measure_network(family: Family) -> NetworkSize:
    """Build the family's network on "meta", where a weight is a shape only, and count."""
    network = family.skeleton()
    kinds = set(network._no_split_modules or ())
    blocks = [module for module in network.modules() if type(module).__name__ in kinds]
    linear = _linear_layers(network, blocks[0])
    head = network.get_output_embeddings()
    assert head is not None
    vocabulary, hidden_size = head.weight.shape
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    num_in_blocks = sum(parameter.numel() for block in blocks for parameter in block.parameters())
    widest = max(layer.inputs for layer in linear)
    num_written = sum(layer.outputs for layer in linear if layer.outputs >= widest > hidden_size)
    cache_width = 2 * _num_key_heads(network.config) * int(hidden_size) // network.config.num_attention_heads
    prefix_sizes = {None: 0, "hidden": int(hidden_size), "states": len(blocks) * cache_width}
    return NetworkSize(
        num_parameters=num_parameters,
        num_root_parameters=num_parameters - num_in_blocks,
        linear_layers=linear,
        num_layers=len(blocks),
        num_heads=network.config.num_attention_heads,
        hidden_size=int(hidden_size),
        vocabulary=int(vocabulary),
        is_gated=num_written > widest,
        materializes_attention=network.config._attn_implementation == "eager",
        has_plain_head=type(head) is nn.Linear,
        cache_width=cache_width,
        prefix_input_size=prefix_sizes[family.prefix_input],
    )


def _linear_layers(network: PreTrainedModel, block: nn.Module) -> tuple[LinearLayer, ...]:
    from lit_sft.tuning._original_names import original_modules

    originals = {
        part.module: name for name, parts in original_modules(network, of_forerunner=True).items() for part in parts
    }
    within = {module for module in block.modules() if isinstance(module, nn.Linear)}
    return tuple(
        LinearLayer(name, originals.get(name, name), module.in_features, module.out_features)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and module in within
    )


def _num_key_heads(config: Any) -> int:
    """Heads of keys, which several heads of queries may share."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
