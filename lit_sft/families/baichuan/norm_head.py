"""Baichuan 2's output head, and the loss term that belongs to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.loss.loss_utils import ForCausalLMLoss


class NormHead(nn.Linear):
    """Logits from an embedding whose rows have length one: h W^T / |W|.

    The original writes the normalized rows over its weight at the first forward in evaluation mode. Here the weight
    stays as it was read, so that it is saved unchanged and trains through the normalization. Dividing the logits
    rather than the rows needs no second matrix of vocabulary times width, neither in the forward nor for the backward.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., H] to logits [..., V] of the same type."""
        # Lengths in float32, and the floor of F.normalize: a row of zeros gives logits of zero.
        length_V: Tensor = torch.linalg.vector_norm(self.weight, dim=1, dtype=torch.float32).clamp_min(1e-12)
        logits: Tensor = F.linear(hidden, self.weight) / length_V
        return logits.to(hidden.dtype)


def resized_norm_head(linear: nn.Linear) -> NormHead:
    """The plain head that transformers makes when it resizes a vocabulary, normalized again."""
    head = NormHead(linear.in_features, linear.out_features)
    head.weight = linear.weight
    return head


class ZLoss:
    """Cross-entropy, plus `weight` times the mean square of the largest logit of each predicting position.

    All released models have weight 0, and then it is the usual loss.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, logits: Tensor, labels: Tensor, vocab_size: int, **kwargs: Any) -> Tensor:
        """Scalar loss of logits [B, T, V] under labels [B, T], not shifted."""
        loss: Tensor = ForCausalLMLoss(logits, labels, vocab_size, **kwargs)
        if self.weight:
            loss = loss + self.weight * logits[:, :-1].float().amax(-1).square().mean()
        return loss
