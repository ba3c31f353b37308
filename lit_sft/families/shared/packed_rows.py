"""Packed rows: several examples in one row, each with positions from 0, which must not see each other."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from lit_sft.families.shared.packed_attention import SDPA_BY_SEGMENT, cu_seqlens_of, goes_by_segment

# The first parameters of every decoder, in their order.
PARAMETERS = ("input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "use_cache")


def separate_packed(decoder: PreTrainedModel) -> None:
    """Have a decoder keep packed examples apart, however it is called.

    transformers sees by restarting positions that a row is packed, but only without a cache (its default) and without
    a padding mask, be it all ones; else the examples mix without a word. Nobody decodes from packed rows. What it then
    makes is a mask of the whole row; here each example attends by itself, unless the implementation is `eager` or the
    blocks are compiled.

    Args:
        decoder: A network that makes its mask with `create_causal_mask`, the first thing that it does, and hands it to
            an attention function of transformers.
    """
    if decoder.config._attn_implementation == "sdpa":
        decoder.config._attn_implementation = SDPA_BY_SEGMENT
    decoder.register_forward_pre_hook(_by_segment, with_kwargs=True)


def _by_segment(
    module: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    given = dict(zip(PARAMETERS, args, strict=False)) | kwargs
    positions_BT, mask, cache = (given.get(name) for name in ("position_ids", "attention_mask", "past_key_values"))
    if positions_BT is None or positions_BT.ndim != 2 or (cache is not None and cache.get_seq_length() > 0):
        return None
    if mask is not None and (mask.ndim != 2 or mask.shape[1] != positions_BT.shape[1]):
        return None  # it says itself who sees whom
    tokens = given.get("input_ids") if given.get("inputs_embeds") is None else given["inputs_embeds"]
    if tokens is not None:
        positions_BT = positions_BT.expand(len(tokens), -1)
    restarts_BT = positions_BT[:, 1:] <= positions_BT[:, :-1]
    if mask is not None:
        # Positions of padding mean nothing.
        restarts_BT = restarts_BT & (mask[:, 1:] != 0) & (mask[:, :-1] != 0)
    # Here the host waits for the device to count them.
    cu_seqlens = cu_seqlens_of(F.pad(restarts_BT, (1, 0), value=True))
    if cu_seqlens.shape[-1] == len(positions_BT) + 1 or _names_segments(mask):
        return None
    if mask is not None and ((mask[:, 1:] != 0) & (mask[:, :-1] == 0)).any():
        raise ValueError("rows of packed examples can be padded on the right only")
    # What stands on the right of an example it cannot see, so a mask of padding there has no use.
    attention_mask = cu_seqlens if goes_by_segment(module) else None
    return (), given | {"attention_mask": attention_mask, "past_key_values": None, "use_cache": False}


def _names_segments(mask: Tensor | None) -> bool:
    """Whether a padding mask keeps examples apart on its own, as that of the ALiBi models may."""
    return mask is not None and not mask.is_floating_point() and bool((mask > 1).any())
