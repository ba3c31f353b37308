"""Cross-entropy at supervised positions only, so that its cost follows the replies and not the rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lit_sft.conversation import IGNORE_INDEX


class TokenTotals(NamedTuple):
    """Sums over supervised tokens, each a scalar: loss (nats, float32), tokens, tokens whose label ranks first."""

    loss: Tensor
    num_tokens: Tensor
    num_correct: Tensor


def supervised_cross_entropy(hidden: Tensor, labels: Tensor, head: nn.Module, *, chunk_size: int = 1024) -> TokenTotals:
    """Next-token loss, summed; divide by the supervised tokens of the optimizer step, not of the micro-batch.

    Hidden states are selected before the output head. With more than one chunk the logits of each are computed again
    in the backward pass, so that no more than [chunk_size, vocabulary] of them live at once.

    Args:
        hidden: Last hidden states [B, T, H].
        labels: [B, T], not shifted: position t is predicted by hidden state t - 1; -100 carries no loss.
        head: Maps [N, H] to logits [N, V].
        chunk_size: Positions whose logits live at once.
    """
    targets = labels[:, 1:]
    is_supervised = targets != IGNORE_INDEX
    chosen = hidden[:, :-1][is_supervised]  # [N, H]
    targets = targets[is_supervised]  # [N]
    loss = chosen.new_zeros((), dtype=torch.float32)
    num_correct = targets.new_zeros(())
    is_chunked = len(targets) > chunk_size and torch.is_grad_enabled()
    for hidden_part, target_part in zip(chosen.split(chunk_size), targets.split(chunk_size), strict=True):
        if is_chunked:
            part = checkpoint(_chunk_totals, hidden_part, target_part, head, use_reentrant=False)
        else:
            part = _chunk_totals(hidden_part, target_part, head)
        loss = loss + part[0]
        num_correct = num_correct + part[1]
    return TokenTotals(loss, is_supervised.sum(), num_correct)


def _chunk_totals(hidden: Tensor, targets: Tensor, head: nn.Module) -> tuple[Tensor, Tensor]:
    logits = head(hidden).float()
    return F.cross_entropy(logits, targets, reduction="sum"), (logits.argmax(-1) == targets).sum()
