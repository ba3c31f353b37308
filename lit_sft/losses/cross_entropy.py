"""Cross-entropy at supervised positions only, so that its cost follows the replies and not the rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_sft.conversation import IGNORE_INDEX
from lit_sft.losses.fused_head import head_cross_entropy
from lit_sft.losses.segments import sums_by_group


class TokenTotals(NamedTuple):
    """Sums over supervised tokens.

    `loss` is that of all, in nats, a float32 scalar to back-propagate. `by_group` [G, 3] float64 holds, without a
    graph, for each group of tokens: loss, tokens, tokens whose label ranks first.
    """

    loss: Tensor
    by_group: Tensor


def supervised_cross_entropy(
    hidden: Tensor,
    labels: Tensor,
    head: nn.Module,
    groups: Tensor,
    num_groups: int,
    *,
    num_supervised: int | None = None,
    chunk_size: int | None = None,
    z_loss_weight: float = 0.0,
) -> TokenTotals:
    """Next-token loss, summed; divide by the supervised tokens of the optimizer step, not of the micro-batch.

    Hidden states are selected before the output head. Without a supervised token the loss is zero, with zero gradients
    for whatever the others have gradients for.

    Args:
        hidden: Last hidden states [B, T, H].
        labels: [B, T], not shifted: position t is predicted by hidden state t - 1; -100 carries no loss.
        head: Maps [N, H] to logits [N, V].
        groups: [B, T], from 0: the group of each label.
        num_groups: G.
        num_supervised: How many labels carry loss, those of the first position of a row apart. If not given, they
            are counted, for which the host waits for the device.
        chunk_size: Positions whose logits live at once; what suits the device if not given.
        z_loss_weight: How many times the square of its largest logit is added to the loss of a position.
    """
    flat_labels = F.pad(labels[:, 1:], (1, 0), value=IGNORE_INDEX).flatten()
    is_supervised = flat_labels != IGNORE_INDEX
    size = int(is_supervised.sum()) if num_supervised is None else num_supervised
    # [N], never the first position of a row
    supervised = torch.nonzero_static(is_supervised, size=size).squeeze(1)
    targets = flat_labels[supervised]
    chosen = hidden.flatten(0, 1).index_select(0, supervised - 1)  # [N, H]
    loss, losses, num_correct = head_cross_entropy(chosen, targets, head, chunk_size, z_loss_weight)
    measures = torch.stack([losses, torch.ones_like(losses), num_correct], dim=1)  # [N, 3]
    return TokenTotals(loss, sums_by_group(measures, groups.flatten()[supervised], num_groups))
