"""What a step of training, validation or prediction takes at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

from lit_sft.conversation import Prompt

if TYPE_CHECKING:
    import torch


@dataclass
class Batch:
    """A micro-batch of rows, each of one or more examples, padded on the right.

    `input_ids` [B, T] int64; `labels` [B, T] int64, -100 where no loss, not shifted; `position_ids` [B, T] int64, from
    0 in each example, None where each row holds one, so that networks count themselves; `segment_ids` [B, T] int32,
    the examples of a row from 1, 0 where padding; `corpus_ids` [B, T] int64, index into `corpora`, which names all
    corpora in each batch. `num_tokens` and `num_supervised` are counted before the transfer to the device, so that
    reading them costs no synchronization. `sources` names the records. `epoch_progress` is the share of the epoch that
    is done with this batch, the same on every rank.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor | None
    segment_ids: torch.Tensor
    corpus_ids: torch.Tensor
    corpora: list[str]
    num_tokens: int
    num_supervised: int
    sources: list[str]
    epoch_progress: float

    def __getstate__(self) -> dict[str, Any]:
        # From a worker through the pipe, as bytes: shared memory costs a round trip to the busy worker for each tensor.
        return {name: value.numpy() if hasattr(value, "device") else value for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import torch

        for name, value in state.items():
            setattr(self, name, torch.from_numpy(value) if hasattr(value, "dtype") else value)

    def to(self, device: torch.device, **kwargs: Any) -> Self:
        """The batch with its tensors on `device` (Lightning calls this); the host does not wait for pinned ones."""
        # Only there do later operations wait for the copy.
        kwargs.setdefault("non_blocking", str(device).startswith("cuda"))
        return _map_tensors(self, lambda tensor: tensor.to(device, **kwargs))

    def pin_memory(self) -> Self:
        """The batch in page-locked memory (the DataLoader calls this)."""
        return _map_tensors(self, lambda tensor: tensor.pin_memory())


@dataclass
class PairBatch(Batch):
    """A micro-batch of answers that are compared or judged; all answers of a record stand in one row.

    Each answer with its prompt is a segment, numbered over the batch from 0 in the order of the rows; labels are those
    of the answers alone, each with the one token that ends it.

    `sequences` [S] int64 is the place in `sources` of the record of each segment, `sequence_corpora` [S] int64 that in
    `corpora`. `pairs` [P, 2] int64 are segments of one record, the better one first: all pairs of a ranking. `margins`
    [P] float32: by how much, 0 where that is not known. `is_good` [S] bool is the verdict of a judged answer; of a
    ranking the best is good and the others are not.
    """

    sequences: torch.Tensor
    sequence_corpora: torch.Tensor
    pairs: torch.Tensor
    margins: torch.Tensor
    is_good: torch.Tensor


@dataclass
class PromptBatch(Batch):
    """A micro-batch of prompts for a policy to answer, a row each; no label is supervised.

    `prompts` [B] are what the rows hold; their `reference_ids` are not known. A batch comes as many times as a rollout
    has parts to train on; `turn` counts them from 0.
    """

    prompts: list[Prompt]
    turn: int = 0


BatchKind = TypeVar("BatchKind", bound=Batch)


def _map_tensors(batch: BatchKind, function: Any) -> BatchKind:
    tensors = {name: function(value) for name, value in vars(batch).items() if hasattr(value, "device")}
    return replace(batch, **tensors)
