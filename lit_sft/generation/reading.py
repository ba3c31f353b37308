"""Rows that a network reads side by side, token after token, with a cache of what it has read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel


class Reading:
    """What a network has read of several rows, and what it expects next.

    Args:
        network: It.
        ids: Of prompts [B, T], padded on the left.
        mask: [B, T], 0 where padding.
        padding_id: What stands in `ids` there.
    """

    def __init__(self, network: PreTrainedModel, ids: Tensor, mask: Tensor, padding_id: int = 0) -> None:
        self.network: Any = network
        self.padding_id = padding_id
        self.device = next(network.get_input_embeddings().parameters()).device
        self.ids, self.mask = ids.to(self.device), mask.to(self.device)
        self.cache: Cache | None = None
        self.logits = self._read()

    def repeat(self, times: int) -> None:
        """Have each row so many times, one beside the other."""
        assert self.cache is not None
        self.cache.batch_repeat_interleave(times)
        self.ids, self.mask, self.logits = (
            part.repeat_interleave(times, dim=0) for part in (self.ids, self.mask, self.logits)
        )

    def keep(self, rows: list[int]) -> None:
        """Forget all other rows."""
        assert self.cache is not None
        kept = torch.tensor(rows, device=self.device)
        self.cache.batch_select_indices(kept)
        self.ids, self.mask = self.ids[kept], self.mask[kept]

    def join(self, other: Reading) -> None:
        """Have the rows of another reading of the same network, too, behind the own ones."""
        assert self.cache is not None
        assert other.cache is not None
        length = max(self.ids.shape[1], other.ids.shape[1])
        for reading in (self, other):
            reading._pad(length)
        # All of it before any of it is kept: where memory runs out, the rows that were there can go on.
        joined = [
            (torch.cat([layer.keys, added.keys]), torch.cat([layer.values, added.values]))
            for layer, added in zip(_layers(self.cache), _layers(other.cache), strict=True)
        ]
        for layer, (keys, values) in zip(_layers(self.cache), joined, strict=True):
            layer.keys, layer.values = keys, values
        self.ids, self.mask, self.logits = (
            torch.cat([getattr(self, name), getattr(other, name)]) for name in ("ids", "mask", "logits")
        )

    def _pad(self, length: int) -> None:
        """Make all rows as long, by padding on the left."""
        assert self.cache is not None
        num_added = length - self.ids.shape[1]
        self.ids = F.pad(self.ids, (num_added, 0), value=self.padding_id)
        self.mask = F.pad(self.mask, (num_added, 0))
        for layer in _layers(self.cache):
            layer.keys, layer.values = (F.pad(part, (0, 0, num_added, 0)) for part in (layer.keys, layer.values))

    def trim(self) -> None:
        """Drop the columns that are padding in all rows."""
        assert self.cache is not None
        num_padded = int(self.mask.shape[1] - self.mask.sum(1).max())
        self.ids, self.mask = self.ids[:, num_padded:], self.mask[:, num_padded:]
        for layer in _layers(self.cache):
            layer.keys, layer.values = layer.keys[:, :, num_padded:], layer.values[:, :, num_padded:]

    def go_on(self, tokens: Tensor) -> None:
        """Read one more token of each row [B]."""
        self.ids = torch.cat([self.ids, tokens[:, None].to(self.device)], dim=1)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.logits = self._read()

    def _read(self) -> Tensor:
        """Logits [B, V] behind the last token, of which all but the first time only one is new."""
        keeps = {"logits_to_keep": 1} if self.network._supports_logits_to_keep() else {}
        inputs = self.network.prepare_inputs_for_generation(
            self.ids,
            next_sequence_length=None if self.cache is None else 1,
            is_first_iteration=self.cache is None,
            past_key_values=self.cache,
            attention_mask=self.mask,
            position_ids=(self.mask.cumsum(1) - 1).clamp_min(0),
            use_cache=True,
            **keeps,
        )
        output = self.network(**inputs)
        self.cache = output.past_key_values
        logits: Tensor = output.logits[:, -1]
        return logits


def _layers(cache: Cache) -> list[Any]:
    """Each with `keys` and `values` [B, K, T, D]."""
    return list(cache.layers)
