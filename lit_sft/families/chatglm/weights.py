"""How ChatGLM-6B stores query, key and value: one matrix in which every head has its three parts together."""

# mypy: disable-error-code="no-untyped-call,no-any-return"
# transformers and torch are typed in part only.

from __future__ import annotations

from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming


def split_heads(fused: torch.Tensor, num_heads: int) -> list[torch.Tensor]:
    """Query, key and value [C, ...] of the fused [3C, ...], in which each head has its three parts together."""
    parts = fused.unflatten(0, (num_heads, 3, -1)).unbind(1)
    return [part.flatten(0, 1).contiguous() for part in parts]


def fuse_heads(parts: list[torch.Tensor], num_heads: int) -> torch.Tensor:
    """The inverse of `split_heads`."""
    return torch.stack([part.unflatten(0, (num_heads, -1)) for part in parts], dim=1).flatten(0, 2).contiguous()


class SplitHeads(ConversionOps):
    """`split_heads` while weights stream in."""

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        """One tensor to three."""
        parts = split_heads(_only(input_dict[source_patterns[0]]), kwargs["config"].num_attention_heads)
        return dict(zip(target_patterns, parts, strict=True))

    @property
    def reverse_op(self) -> ConversionOps:
        """What saving does."""
        return FuseHeads()


class FuseHeads(ConversionOps):
    """`fuse_heads` while weights stream out."""

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        """Three tensors to one."""
        parts = [_only(input_dict[pattern]) for pattern in source_patterns]
        return {target_patterns[0]: fuse_heads(parts, kwargs["config"].num_attention_heads)}

    @property
    def reverse_op(self) -> ConversionOps:
        """What loading does."""
        return SplitHeads()


def _only(tensors: Any) -> torch.Tensor:
    return tensors[0] if isinstance(tensors, list) else tensors


CONVERSION: list[WeightConverter | WeightRenaming] = [
    WeightConverter(
        f"attention.query_key_value.{kind}", [f"attention.{part}_proj.{kind}" for part in "qkv"], [SplitHeads()]
    )
    for kind in ("weight", "bias")
]
"""The fused tensors on disk to the separate ones of the network; saving goes the other way."""
