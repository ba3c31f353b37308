"""NEFTune (Jain et al. 2023, arXiv:2310.05914): noise on the embeddings, so that wordings are not learned by heart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


@contextmanager
def noisy_embeddings(network: PreTrainedModel, alpha: float, segment_ids: Tensor) -> Iterator[None]:
    """Within the context, add uniform noise from -m to m, m = alpha / sqrt(L d), to each embedded token.

    d is the width of the embedding, L the number of tokens of the token's example, not of the row that it is packed in.

    Args:
        network: The network; its embedding lies outside the blocks that gradient checkpointing computes again.
        alpha: The paper tries 5, 10 and 15.
        segment_ids: Examples of each row from 1, 0 where padding [B, T].
    """
    segments = segment_ids.long()
    sizes = segments.new_zeros(len(segments), segments.shape[1] + 1)
    sizes.scatter_add_(1, segments, torch.ones_like(segments))
    num_tokens = sizes.gather(1, segments)  # [B, T]

    def add_noise(module: Any, arguments: Any, embedded: Tensor) -> Tensor:
        magnitude = (alpha / (num_tokens * embedded.shape[-1]).sqrt()).masked_fill(segments == 0, 0.0)
        noise = torch.empty_like(embedded).uniform_(-1, 1)
        return embedded + noise * magnitude.unsqueeze(-1).to(embedded.dtype)

    handle = network.get_input_embeddings().register_forward_hook(add_noise)
    try:
        yield
    finally:
        handle.remove()
