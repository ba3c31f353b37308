"""Attention with linear biases (Press et al. 2022, arXiv:2108.12409) at the cost of plain causal attention.

The bias slope_h * j on the score of query i and key j is itself a dot product. Queries and keys get a few more
dimensions that compute it, so any kernel for plain causal attention computes ALiBi, and no [B, N, T, T] bias exists.

A half-precision number cannot hold a slope times a position, but products are accumulated in float32, so it is enough
that every factor is exact: a position is split into multiples of 256 and the rest, a slope into three parts.

Shapes: B rows, N heads, T tokens, D dimensions of a head, E extended dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 256
"""Integers up to this one are exact in bfloat16, the coarsest type."""
SLOPE_PARTS = 3
"""Three parts of bfloat16's eight bits are as exact as float32."""
ALIGNMENT = 8
"""Fast kernels want head dimensions that are multiples of this."""


def alibi_slopes(num_heads: int) -> Tensor:
    """Slopes [N], float64, in the order of the heads.

    For a power of two they fall geometrically from 2^(-8/N) to 2^-8. Other counts take those of the next lower power
    p, then every second one of 2p, so they are not sorted.
    """

    def geometric(count: int) -> list[float]:
        return [2 ** (-8 * (head + 1) / count) for head in range(count)]

    power = 2 ** math.floor(math.log2(num_heads))
    slopes = geometric(power) + geometric(2 * power)[::2][: num_heads - power]
    return torch.tensor(slopes, dtype=torch.float64)


class Alibi(nn.Module):
    """The extra dimensions of queries and keys; it has no weights.

    `slope * j` and `slope * (j - i)` differ by a constant of the row, which softmax ignores, so keys alone carry
    positions and stay valid in a cache however long it grows.

    Args:
        num_heads: N.
        head_dim: D.
    """

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.num_extra = -(-(head_dim + 2 * SLOPE_PARTS) // ALIGNMENT) * ALIGNMENT - head_dim
        self.query_NX = nn.Buffer(self.query_dimensions(), persistent=False)

    def query_dimensions(self) -> Tensor:
        """The slope parts that stand behind every query, [N, X] float32; bfloat16 holds them exactly."""
        # The kernel scales all scores by D^-0.5, the biases included.
        slopes_N = alibi_slopes(self.num_heads) * math.sqrt(self.head_dim)
        query_NX = torch.zeros(self.num_heads, self.num_extra, dtype=torch.float32)
        for part in range(SLOPE_PARTS):
            rounded_N = slopes_N.bfloat16()
            slopes_N = slopes_N - rounded_N
            query_NX[:, 2 * part] = rounded_N * BLOCK
            query_NX[:, 2 * part + 1] = rounded_N
        return query_NX

    def forward(self, positions_BT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What to append to every query [1, N, 1, X] and to the keys at these positions [B, 1, T, X]."""
        blocks_BT = positions_BT // BLOCK
        key_BT2 = torch.stack([blocks_BT, positions_BT - blocks_BT * BLOCK], dim=-1).to(dtype)
        key_BTX = F.pad(key_BT2.repeat(1, 1, SLOPE_PARTS), (0, self.num_extra - 2 * SLOPE_PARTS))
        return self.query_NX.to(dtype)[None, :, None], key_BTX[:, None]


def extend(x_BNTD: Tensor, extra: Tensor) -> Tensor:
    """The heads with their extra dimensions, [B, N, T, E]; `extra` broadcasts over B, N and T."""
    return torch.cat([x_BNTD, extra.expand(*x_BNTD.shape[:-1], -1)], dim=-1)
