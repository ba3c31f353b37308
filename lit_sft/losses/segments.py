"""Tokens laid sequence after sequence, and sums over each sequence that no order of threads changes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def sums_by_group(columns: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """[N, M] -> [G, M] float64.

    Args:
        columns: [N, M].
        groups: [N], from 0: the group of each row.
        num_groups: G.
    """
    is_member = groups == torch.arange(num_groups, device=groups.device)[:, None]  # [G, N]
    # Not a product with ones and zeros: a loss that is NaN would be that of all groups.
    return torch.where(is_member[:, :, None], columns.double(), 0.0).sum(1)


class Segments(NamedTuple):
    """Where N tokens stand in a grid [S, L] of S sequences, each from the left.

    `places` [N] int64 in the flat grid; `lengths` [S] int64; `longest` is L, at least that of the longest sequence.
    """

    places: Tensor
    lengths: Tensor
    longest: int

    @classmethod
    def of(cls, sequences: Tensor, num_sequences: int, longest: int) -> Segments:
        """From the number of the sequence of each token. The host does not wait for the device.

        Args:
            sequences: [N] int64, not decreasing, below `num_sequences`.
            num_sequences: S; a sequence may have no token.
            longest: Columns of the grid: any bound that is known without counting, such as the width of the batch.
        """
        numbers = torch.arange(num_sequences + 1, device=sequences.device)
        starts = torch.searchsorted(sequences.contiguous(), numbers)  # [S + 1], the last one N
        columns = torch.arange(len(sequences), device=sequences.device) - starts[sequences]
        return cls(sequences * longest + columns, starts.diff(), longest)

    def grid(self, values: Tensor) -> Tensor:
        """[N] -> [S, L], zero where no token stands."""
        # Each place is written once, and the backward pass reads: there is nothing to add in an order of its own.
        cells = values.new_zeros(len(self.lengths) * self.longest).scatter(0, self.places, values)
        return cells.view(len(self.lengths), self.longest)

    def sums(self, values: Tensor) -> Tensor:
        """[N] -> [S]."""
        return self.grid(values).sum(1)

    @property
    def mask(self) -> Tensor:
        """Bool [S, L]: where tokens stand."""
        return torch.arange(self.longest, device=self.lengths.device) < self.lengths[:, None]
