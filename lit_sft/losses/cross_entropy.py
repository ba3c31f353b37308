"""Cross-entropy at supervised positions only, so that its cost follows the replies and not the rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lit_sft.conversation import IGNORE_INDEX


class TokenTotals(NamedTuple):
    """Sums over supervised tokens.

    `loss` is that of all, in nats, a float32 scalar to back-propagate. `by_group` [G, 3] float64 holds, without a
    graph, for each group of tokens: loss, tokens, tokens whose label ranks first.
    """

    loss: Tensor
    by_group: Tensor


def supervised_cross_entropy(
    hidden: Tensor, labels: Tensor, head: nn.Module, groups: Tensor, num_groups: int, *, chunk_size: int = 1024
) -> TokenTotals:
    """Next-token loss, summed; divide by the supervised tokens of the optimizer step, not of the micro-batch.

    Hidden states are selected before the output head. With more than one chunk the logits of each are computed again
    in the backward pass, so that no more than [chunk_size, vocabulary] of them live at once. Without a supervised
    token the loss is zero, with zero gradients for whatever the others have gradients for.

    Args:
        hidden: Last hidden states [B, T, H].
        labels: [B, T], not shifted: position t is predicted by hidden state t - 1; -100 carries no loss.
        head: Maps [N, H] to logits [N, V].
        groups: [B, T], from 0: the group of each label.
        num_groups: G.
        chunk_size: Positions whose logits live at once.
    """
    flat_labels = F.pad(labels[:, 1:], (1, 0), value=IGNORE_INDEX).flatten()
    # The one place where the host waits for the device: how many they are.
    supervised = (flat_labels != IGNORE_INDEX).nonzero().squeeze(1)  # [N], never the first position of a row
    targets = flat_labels[supervised]
    chosen = hidden.flatten(0, 1).index_select(0, supervised - 1)  # [N, H]
    is_chunked = len(targets) > chunk_size and torch.is_grad_enabled()
    parts = [
        checkpoint(_chunk, hidden_part, target_part, head, use_reentrant=False)
        if is_chunked
        else _chunk(hidden_part, target_part, head)
        for hidden_part, target_part in zip(chosen.split(chunk_size), targets.split(chunk_size), strict=True)
    ]
    losses, hits = (torch.cat(part) for part in zip(*parts, strict=True))  # [N]
    measures = torch.stack([losses.detach(), torch.ones_like(losses), hits], dim=1).double()  # [N, 3]
    group_ids = torch.arange(num_groups, device=groups.device)[:, None]
    is_member = groups.flatten()[supervised] == group_ids  # [G, N]
    # Not a product with ones and zeros: a loss that is NaN would be that of all groups.
    return TokenTotals(losses.sum(), torch.where(is_member[:, :, None], measures, 0.0).sum(1))


def _chunk(hidden: Tensor, targets: Tensor, head: nn.Module) -> tuple[Tensor, Tensor]:
    """Loss of each target and whether it ranks first, [N] each."""
    logits = head(hidden).float()
    return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets
