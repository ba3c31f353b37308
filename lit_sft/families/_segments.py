"""Attention of packed rows, within each of their examples: no mask of a whole row, and no work that a mask undoes.

An attention function of transformers. Where a row is packed, what arrives in place of a mask are the borders of the
examples, int32 [1, 1, 1, S + 1]: places in the batch [B * T], laid out row after row, at which an example begins, and
the end. transformers hands on whatever has four dimensions.
"""

from __future__ import annotations

import logging
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

log = logging.getLogger(__name__)

SDPA_BY_SEGMENT = "sdpa_by_segment"
"""Its name. Without packed rows it is transformers' `sdpa`."""


def borders_of(starts_BT: Tensor) -> Tensor:
    """Borders [1, 1, 1, S + 1] of examples that begin where `starts_BT` is true; every row begins with one."""
    places = starts_BT.flatten().nonzero().squeeze(1)
    return F.pad(places, (0, 1), value=starts_BT.numel()).int()[None, None, None]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Mixed values [B, T, N, H] of queries [B, N, T, H] and keys and values [B, K, T, H], K dividing N."""
    if attention_mask is not None and attention_mask.dtype == torch.int32:
        borders = attention_mask.flatten()
        if torch.compiler.is_compiling():
            attention_mask = _dense(borders, query)
        elif query.device.type == "cpu":
            return _one_by_one(query, key, value, borders, dropout, scaling), None
        elif not dropout and _varies_lengths(query.device, _computed_in(query), query.shape[-1]):
            return _together(query, key, value, borders, scaling), None
        else:
            attention_mask = _dense(borders, query)
    mixed, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )
    return mixed, None


ALL_ATTENTION_FUNCTIONS.register(SDPA_BY_SEGMENT, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(SDPA_BY_SEGMENT, sdpa_mask)


def _one_by_one(
    query: Tensor, key: Tensor, value: Tensor, borders: Tensor, dropout: float, scaling: float | None
) -> Tensor:
    """A call for each example: on a CPU there is nothing to gain from one for all."""
    length = query.shape[2]
    parts = []
    for start, end in pairwise(borders.tolist()):
        row, first = divmod(start, length)
        own = (slice(row, row + 1), slice(None), slice(first, first + end - start))
        mixed = F.scaled_dot_product_attention(
            query[own],
            key[own],
            value[own],
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        parts.append(mixed.transpose(1, 2))
    return torch.cat(parts, dim=1).view(query.shape[0], length, *parts[0].shape[2:])


def _together(query: Tensor, key: Tensor, value: Tensor, borders: Tensor, scaling: float | None) -> Tensor:
    """One call of the kernel for sequences of several lengths."""
    from torch.nn.attention.varlen import varlen_attn

    length = query.shape[2]
    dtype = _computed_in(query)
    mixed = varlen_attn(
        query.transpose(1, 2).flatten(0, 1).to(dtype),
        key.transpose(1, 2).flatten(0, 1).to(dtype),
        value.transpose(1, 2).flatten(0, 1).to(dtype),
        borders,
        borders,
        length,
        length,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=key.shape[1] != query.shape[1],
    )
    assert isinstance(mixed, Tensor)
    return mixed.view(query.shape[0], length, *mixed.shape[1:])


def _dense(borders: Tensor, query: Tensor) -> Tensor:
    """The mask [B, 1, T, T] that says the same."""
    num_rows, length = query.shape[0], query.shape[2]
    places = torch.arange(num_rows * length, device=query.device, dtype=torch.int32)
    segment_BT = torch.bucketize(places, borders[1:], right=True).view(num_rows, length)
    is_same = segment_BT[:, None, :, None] == segment_BT[:, None, None, :]
    return is_same & torch.ones(length, length, dtype=torch.bool, device=query.device).tril()


def _computed_in(query: Tensor) -> torch.dtype:
    """The type that autocast would have attention compute in, which knows nothing of the kernel."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


@cache
def _varies_lengths(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernel is there for such heads and gives what plain attention does, values and gradients."""
    if dtype not in {torch.float16, torch.bfloat16}:
        return False
    borders = torch.tensor([0, 5, 16], dtype=torch.int32, device=device)
    waves = torch.arange(3 * 2 * 16 * head_dim, device=device, dtype=torch.float32).sin()
    with torch.enable_grad():
        parts = waves.view(3, 1, 2, 16, head_dim).to(dtype).detach().requires_grad_()
        query, key, value = parts
        try:
            mixed = _together(query, key, value, borders, None)
            (gradient,) = torch.autograd.grad(mixed.float().sum(), parts)
        except (ImportError, RuntimeError, NotImplementedError, ValueError) as error:
            log.warning("packed rows are masked, which is slower: no kernel for %s of %s (%s)", head_dim, dtype, error)
            return False
        expected = _one_by_one(query, key, value, borders, 0.0, None)
        (wanted,) = torch.autograd.grad(expected.float().sum(), parts)
    is_right = all(torch.allclose(a, b, atol=0.05, rtol=0.05) for a, b in ((mixed, expected), (gradient, wanted)))
    if not is_right:
        log.warning("packed rows are masked, which is slower: the kernel for %s of %s is wrong here", head_dim, dtype)
    return is_right
