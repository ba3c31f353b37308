"""Attention of packed rows, within each of their examples: no mask of a whole row, and no work that a mask undoes.

An attention function of transformers. What arrives in place of a mask are the `CuSeqlens` of the examples, which have
four dimensions because transformers hands on whatever has.
"""

from __future__ import annotations

import logging
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

log = logging.getLogger(__name__)

SDPA_BY_SEGMENT = "sdpa_by_segment"
"""Its name. Without packed rows it is transformers' `sdpa`."""


class CuSeqlens(Tensor):
    """Where the examples of packed rows begin and end, int32 [1, 1, 1, S + 1]: what kernels call `cu_seqlens`.

    Places in the batch [B * T], laid out row after row, at which an example begins, and the end. A second line,
    [1, 1, 2, S + 1], says where the prefix of each example ends, whose tokens see all of it (ChatGLM-6B).
    """

    dense: Tensor | None = None
    """The mask that says the same, once a layer needed it."""

    # What is computed from cu_seqlens are plain tensors.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as torch documents it


def goes_by_segment(network: PreTrainedModel) -> bool:
    """Whether a network uses `packed_attention`; compiled blocks are better off with one mask for all of them."""
    if network.config._attn_implementation != SDPA_BY_SEGMENT:
        return False
    lists = (child for child in network.children() if isinstance(child, nn.ModuleList))
    return all(block._compiled_call_impl is None for blocks in lists for block in blocks)


def cu_seqlens_of(starts_BT: Tensor, is_prefix_BT: Tensor | None = None) -> CuSeqlens:
    """What `packed_attention` takes in place of a mask.

    Args:
        starts_BT: Where an example begins; in the first column always.
        is_prefix_BT: Which tokens belong to the prefix with which their example begins; none if not given.
    """
    cu_seqlens = F.pad(starts_BT.flatten().nonzero().squeeze(1), (0, 1), value=starts_BT.numel())
    if is_prefix_BT is None:
        return cu_seqlens.int()[None, None, None].as_subclass(CuSeqlens)
    num_before = F.pad(is_prefix_BT.flatten().cumsum(0), (1, 0))[cu_seqlens]
    prefix_ends = cu_seqlens + F.pad(num_before.diff(), (0, 1))
    return torch.stack([cu_seqlens, prefix_ends]).int()[None, None].as_subclass(CuSeqlens)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Mixed values [B, T, N, H] of queries [B, N, T, H] and keys and values [B, K, T, H], K dividing N.

    `attention_mask` is one of transformers, or the `CuSeqlens` of packed examples.
    """
    if isinstance(attention_mask, CuSeqlens):
        if _can_go_by_segment(query, dropout):
            return _by_segment(query, key, value, attention_mask[0, 0], dropout, scaling), None
        attention_mask = _dense_once(attention_mask, query)
    mixed, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )
    return mixed, None


ALL_ATTENTION_FUNCTIONS.register(SDPA_BY_SEGMENT, packed_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(SDPA_BY_SEGMENT, sdpa_mask)


def _can_go_by_segment(query: Tensor, dropout: float) -> bool:
    """Whether there is something better than the mask of the whole row."""
    if torch.compiler.is_compiling():
        return False
    if query.device.type == "cpu":
        return True
    return not dropout and _varies_lengths(query.device, _computed_in(query), query.shape[-1])


def _by_segment(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, dropout: float, scaling: float | None
) -> Tensor:
    """`cu_seqlens` is [1, S + 1], or [2, S + 1] with prefixes."""

    def within(cu_seqlens: Tensor, *, is_causal: bool) -> Tensor:
        if query.device.type == "cpu":
            return _per_sequence_loop(query, key, value, cu_seqlens, dropout, scaling, is_causal=is_causal)
        return _varlen_kernel(query, key, value, cu_seqlens, scaling, is_causal=is_causal)

    mixed = within(cu_seqlens[0], is_causal=True)
    if len(cu_seqlens) == 1:
        return mixed
    # Prefixes, and what follows them, as sequences of their own: of that the prefixes are right.
    parts = cu_seqlens.T.flatten()[:-1]
    _, is_prefix = _segments_of(cu_seqlens, query)
    return torch.where(is_prefix[:, :, None, None], within(parts.contiguous(), is_causal=False), mixed)


def _per_sequence_loop(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    dropout: float,
    scaling: float | None,
    *,
    is_causal: bool,
) -> Tensor:
    """A call for each sequence: on a CPU there is nothing to gain from one for all."""
    lengths = [end - start for start, end in pairwise(cu_seqlens.tolist()) if end > start]

    def parts_of(heads: Tensor) -> tuple[Tensor, ...]:
        # The backward pass of `split` lays the gradients of all parts side by side; that of a slice would write zeros
        # for all other tokens, and add them, once for each sequence.
        tokens = heads.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None]
        return torch.split(tokens, lengths, dim=2)

    mixed = [
        F.scaled_dot_product_attention(
            *parts, dropout_p=dropout, is_causal=is_causal, scale=scaling, enable_gqa=key.shape[1] != query.shape[1]
        ).transpose(1, 2)
        for parts in zip(parts_of(query), parts_of(key), parts_of(value), strict=True)
    ]
    return torch.cat(mixed, dim=1).view(query.shape[0], query.shape[2], *mixed[0].shape[2:])


def _varlen_kernel(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scaling: float | None, *, is_causal: bool
) -> Tensor:
    """One call of the kernel for sequences of several lengths."""
    from torch.nn.attention.varlen import varlen_attn

    length = query.shape[2]
    dtype = _computed_in(query)
    mixed = varlen_attn(
        query.transpose(1, 2).flatten(0, 1).to(dtype),
        key.transpose(1, 2).flatten(0, 1).to(dtype),
        value.transpose(1, 2).flatten(0, 1).to(dtype),
        cu_seqlens,
        cu_seqlens,
        length,
        length,
        scale=scaling,
        window_size=(-1, 0 if is_causal else -1),
        enable_gqa=key.shape[1] != query.shape[1],
    )
    assert isinstance(mixed, Tensor)
    return mixed.view(query.shape[0], length, *mixed.shape[1:])


def _segments_of(cu_seqlens: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Of each token [B, T] the number of its example and whether it belongs to a prefix."""
    num_rows, length = query.shape[0], query.shape[2]
    places = torch.arange(num_rows * length, device=query.device, dtype=torch.int32)
    segment = torch.bucketize(places, cu_seqlens[0, 1:], right=True)
    is_prefix = places < cu_seqlens[-1, segment]
    return segment.view(num_rows, length), is_prefix.view(num_rows, length)


def _dense_once(cu_seqlens: CuSeqlens, query: Tensor) -> Tensor:
    """The mask that says the same, for all layers."""
    if torch.compiler.is_compiling():
        return _dense(cu_seqlens[0, 0], query)
    if cu_seqlens.dense is None:
        cu_seqlens.dense = _dense(cu_seqlens[0, 0], query)
    return cu_seqlens.dense


def _dense(cu_seqlens: Tensor, query: Tensor) -> Tensor:
    """The mask [B, 1, T, T] that says the same."""
    length = query.shape[2]
    segment_BT, is_prefix_BT = _segments_of(cu_seqlens, query)
    is_same = segment_BT[:, None, :, None] == segment_BT[:, None, None, :]
    is_before = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    return is_same & (is_before | is_prefix_BT[:, None, None, :])


def _computed_in(query: Tensor) -> torch.dtype:
    """The type that autocast would have attention compute in, which knows nothing of the kernel."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


@cache
def _varies_lengths(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernel is there for such heads and gives what plain attention does, values and gradients."""
    if dtype not in {torch.float16, torch.bfloat16}:
        return False
    # Whoever asks first: a validation, in which nothing has a gradient, or a block that is checkpointed and counts
    # what is saved for the backward pass.
    kept = saved_tensors_hooks(lambda saved: saved, lambda saved: saved)
    with torch.inference_mode(False), torch.enable_grad(), kept:
        try:
            is_right = all(_is_right(device, dtype, head_dim, is_causal=is_causal) for is_causal in (True, False))
        except (ImportError, RuntimeError, NotImplementedError, ValueError) as error:
            log.warning("packed rows are masked, which is slower: no kernel for %s of %s (%s)", head_dim, dtype, error)
            return False
    if not is_right:
        log.warning("packed rows are masked, which is slower: the kernel for %s of %s is wrong here", head_dim, dtype)
    return is_right


def _is_right(device: torch.device, dtype: torch.dtype, head_dim: int, *, is_causal: bool) -> bool:
    """Two sequences with an empty one between them, queries in groups of two."""
    cu_seqlens = torch.tensor([0, 5, 5, 16], dtype=torch.int32, device=device)
    waves = torch.arange(4 * 16 * head_dim, device=device, dtype=torch.float32).sin()
    heads = waves.view(1, 4, 16, head_dim).to(dtype).requires_grad_()
    parts = heads[:, :2], heads[:, 2:3], heads[:, 3:]
    mixed = _varlen_kernel(*parts, cu_seqlens, None, is_causal=is_causal)
    expected = _per_sequence_loop(*parts, cu_seqlens, 0.0, None, is_causal=is_causal)
    found, wanted = (torch.autograd.grad(each.float().square().sum(), heads)[0] for each in (mixed, expected))
    return all(torch.allclose(a, b, atol=0.05, rtol=0.05) for a, b in ((mixed, expected), (found, wanted)))
