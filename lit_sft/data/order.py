"""The order of training: a function of (seed, epoch), which a resumed run takes up where it stopped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DistributedSampler


@dataclass(frozen=True)
class Position:
    """Batches of an epoch that every rank has trained on."""

    epoch: int = 0
    num_batches: int = 0


class EpochOrder(DistributedSampler[Any]):
    """Indices of one rank in one epoch, shuffled anew each epoch.

    Args:
        examples: What is ordered.
        start: Where training goes on; the batches before it are left out of its epoch.
        micro_batch_size: Rows of a batch.
        kwargs: What DistributedSampler takes.
    """

    def __init__(self, examples: Any, *, start: Position, micro_batch_size: int, **kwargs: Any) -> None:
        super().__init__(examples, **kwargs)
        self.start = start
        self.num_skipped = start.num_batches * micro_batch_size
        # Worker processes begin to fetch before the trainer says which epoch it is.
        self.set_epoch(start.epoch)

    def __iter__(self) -> Iterator[Any]:
        order = list(super().__iter__())
        return iter(order[self.num_skipped :] if self.epoch == self.start.epoch else order)
