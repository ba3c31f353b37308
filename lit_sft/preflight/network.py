"""What a network consists of, counted without its weights: the input of the formulas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lit_sft.families._base import Family


@dataclass(frozen=True)
class NetworkSize:
    """Counts of a network.

    Args:
        num_parameters: All of them.
        num_root_parameters: Those outside the decoder blocks: embedding, head, last norm.
        linear_shapes: (name, inputs, outputs) of the linear layers of one decoder block.
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
    linear_shapes: tuple[tuple[str, int, int], ...]
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
        return self.num_layers * sum(inputs * outputs for _, inputs, outputs in self.linear_shapes)

    @property
    def num_block_parameters(self) -> int:
        """Parameters of one decoder block."""
        return (self.num_parameters - self.num_root_parameters) // self.num_layers

    @property
    def widest(self) -> int:
        """Width of the feed-forward layer."""
        return max(inputs for _, inputs, _ in self.linear_shapes)

    def adapted(self, targets: Sequence[str]) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear layers of one block that LoRA adapts."""
        return [(i, o) for name, i, o in self.linear_shapes if any(_is_named(name, target) for target in targets)]


def measure_network(family: Family) -> NetworkSize:
    """Build the family's network on "meta", where a weight is a shape only, and count."""
    network = family.skeleton()
    kinds = set(network._no_split_modules or ())
    blocks = [module for module in network.modules() if type(module).__name__ in kinds]
    linear = tuple(
        (name, module.in_features, module.out_features)
        for name, module in blocks[0].named_modules()
        if isinstance(module, nn.Linear)
    )
    head = network.get_output_embeddings()
    assert head is not None
    vocabulary, hidden_size = head.weight.shape
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    num_in_blocks = sum(parameter.numel() for block in blocks for parameter in block.parameters())
    widest = max(inputs for _, inputs, _ in linear)
    num_written = sum(outputs for _, _, outputs in linear if outputs >= widest > hidden_size)
    cache_width = 2 * _num_key_heads(network.config) * int(hidden_size) // network.config.num_attention_heads
    prefix_sizes = {None: 0, "hidden": int(hidden_size), "states": len(blocks) * cache_width}
    return NetworkSize(
        num_parameters=num_parameters,
        num_root_parameters=num_parameters - num_in_blocks,
        linear_shapes=linear,
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


def _num_key_heads(config: Any) -> int:
    """Heads of keys, which several heads of queries may share."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def _is_named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
