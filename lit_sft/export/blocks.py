"""Weights as integers in blocks, made and read back with torch: the layouts of MatMulNBits and DequantizeLinear.

Along its inputs each row of a matrix is cut into blocks; a block has one scale, and its weights are whole multiples of
it. There is no zero point: the largest weight of a block, by magnitude, is what the end of the range stands for.

Shapes: N outputs, K inputs, B blocks of a row, W weights of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

CHUNK = 1 << 18
"""Weights that are quantized at once: what is computed with them stays in the caches of a processor."""

NUM_TRIED = 26
"""Scales that are tried for each block."""


def row_chunks(weight: Tensor) -> Iterator[Tensor]:
    """Some rows of [N, ...] at a time; a single number as it is."""
    if not weight.ndim:
        return iter([weight])
    per_row = max(1, weight[0].numel())
    return iter(weight.split(max(1, CHUNK // per_row)))


def quantize(weight: Tensor, bits: int, block: int) -> tuple[Tensor, Tensor]:
    """Blocks [N, B, W * bits / 8] uint8 and scales [N, B] float32 of some rows [N, K].

    Of several scales each block takes the one with the smallest squared error.
    """
    num_rows, num_inputs = weight.shape
    num_blocks = -(-num_inputs // block)
    padded = torch.nn.functional.pad(weight.float(), (0, num_blocks * block - num_inputs))
    blocks_NBW = padded.view(num_rows, num_blocks, block)
    lowest, highest = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    extreme_NB1 = blocks_NBW.gather(-1, blocks_NBW.abs().argmax(-1, keepdim=True))
    best_NB1 = extreme_NB1 / lowest
    least_NB1 = torch.full_like(best_NB1, torch.inf)
    # From where a few of the largest are cut off to where all have room to either side.
    spread = torch.linspace(0.75, 1.2, NUM_TRIED) if bits < 8 else torch.ones(1)
    for factor in spread.tolist():
        scale_NB1 = extreme_NB1 / lowest * factor
        rounded_NBW = _multiples(blocks_NBW, scale_NB1, lowest, highest).mul_(scale_NB1)
        error_NB1 = rounded_NBW.sub_(blocks_NBW).square_().sum(-1, keepdim=True)
        is_better = error_NB1 < least_NB1
        least_NB1 = torch.where(is_better, error_NB1, least_NB1)
        best_NB1 = torch.where(is_better, scale_NB1, best_NB1)
    multiple_NBW = (_multiples(blocks_NBW, best_NB1, lowest, highest) - lowest).to(torch.uint8)
    if bits == 4:  # the first of two in the low half
        multiple_NBW = multiple_NBW[..., 0::2] | (multiple_NBW[..., 1::2] << 4)
    return multiple_NBW, best_NB1[..., 0]


def dequantize(blocks: Tensor, scales: Tensor, bits: int, num_inputs: int) -> Tensor:
    """The matrix [N, K] in float32 that `blocks` and `scales` of `quantize` stand for."""
    multiples_NBW = _halves(blocks).float() if bits == 4 else blocks.float()
    weight_NBW = multiples_NBW.sub_(1 << (bits - 1)) * scales[..., None]
    return weight_NBW.flatten(1)[:, :num_inputs]


def to_signed(blocks: Tensor, bits: int, num_inputs: int) -> Tensor:
    """Multiples [N, K] int8, without those that fill up the last block, of `blocks` of `quantize`."""
    multiples_NBW = _halves(blocks) if bits == 4 else blocks
    return multiples_NBW.flatten(1)[:, :num_inputs].sub(1 << (bits - 1)).view(torch.int8)


def pack_signed(multiples: Tensor, bits: int) -> Tensor:
    """Bytes of multiples of any shape in their order, as tensors of the types int8 and int4 of ONNX have them."""
    flat = multiples.flatten().view(torch.uint8)
    if bits == 8:
        return flat
    flat = torch.nn.functional.pad(flat, (0, len(flat) % 2)) & 15
    return flat[0::2] | (flat[1::2] << 4)


def unpack_signed(stored: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """Multiples int8 of the bytes of `pack_signed`."""
    if bits == 4:
        stored = ((_halves(stored) ^ 8) - 8)[: math.prod(shape)]
    return stored.view(torch.int8).view(*shape)


def _halves(stored: Tensor) -> Tensor:
    """Two numbers of each byte, the first in its low half."""
    return torch.stack([stored & 15, stored >> 4], dim=-1).flatten(-2)


def _multiples(blocks_NBW: Tensor, scale_NB1: Tensor, lowest: int, highest: int) -> Tensor:
    """Which multiple of the scale each weight becomes; all zero where the scale is."""
    safe_NB1 = torch.where(scale_NB1 == 0, 1.0, scale_NB1)
    return (blocks_NBW / safe_NB1).round_().clamp_(lowest, highest)
