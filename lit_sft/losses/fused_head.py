"""Output head and cross-entropy in one, a chunk of positions at a time.

The gradient of the loss with respect to the logits is the softmax less the target, so it can be made in the forward
pass, where the logits are at hand: it takes the place of the logits, is carried on through the head at once, and only
the gradients of the hidden states and of the head are kept for the backward pass. The idea is that of Hsu et al. 2024
(Liger Kernel, arXiv:2410.10989), here for any head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lit_sft.losses.head_tiles import chunk_size_for, differentiable, target_losses


def head_cross_entropy(
    hidden: Tensor, targets: Tensor, head: nn.Module, chunk_size: int | None = None, z_loss_weight: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the losses, to back-propagate once; without a graph that of each target and whether it ranks first.

    A target ranks first if its logit is above all others: of a tie, frequent in bfloat16, nobody knows the winner.

    Args:
        hidden: [N, H].
        targets: [N].
        head: Maps [N, H] to logits [N, V], each row by itself.
        chunk_size: Positions whose logits live at once; what suits the device if not given.
        z_loss_weight: How many times the square of its largest logit is added to the loss of a target (Baichuan 2).

    Returns:
        A float32 scalar, and float32 [N] and bool [N].
    """
    chunk_size = chunk_size or chunk_size_for(hidden)
    if torch.is_grad_enabled():
        trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
        totals: tuple[Tensor, Tensor, Tensor] = _HeadCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden, targets, head, chunk_size, z_loss_weight, *trained
        )
        return totals
    parts = [
        target_losses(head(hidden_part).float(), target_part, z_loss_weight)[:2]
        for hidden_part, target_part in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True)
    ]
    losses, num_correct = (torch.cat(part) for part in zip(*parts, strict=True))
    return losses.sum(), losses, num_correct


class _HeadCrossEntropy(torch.autograd.Function):
    """See `head_cross_entropy`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        head: nn.Module,
        chunk_size: int,
        z_loss_weight: float,
        *trained: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses, and the gradients for the backward pass."""
        differentiated = differentiable(head, trained, hidden, chunk_size)
        losses, num_correct, of_hidden = [], [], []
        for hidden_part, target_part in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True):
            scores = differentiated.logits(hidden_part)
            loss, is_first, total, highest = target_losses(scores, target_part, z_loss_weight)
            losses.append(loss)
            num_correct.append(is_first)
            if hidden.requires_grad or trained:
                at_highest = scores.argmax(1, keepdim=True) if z_loss_weight else None
                scores.div_(total[:, None]).scatter_add_(1, target_part[:, None], -torch.ones_like(total)[:, None])
                if at_highest is not None:
                    scores.scatter_add_(1, at_highest, 2 * z_loss_weight * highest[:, None])
                of_hidden.append(differentiated.backward(scores))
        ctx.gradients = [torch.cat(of_hidden) if hidden.requires_grad else None, *differentiated.of_trained]
        by_target = torch.cat(losses), torch.cat(num_correct)
        ctx.mark_non_differentiable(*by_target)
        return by_target[0].sum(), *by_target

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """The kept gradients, scaled in place: that of the head may be a gigabyte."""
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the loss can be back-propagated only once")
        of_hidden, *of_trained = (gradient if gradient is None else gradient.mul_(scale) for gradient in gradients)
        return of_hidden, None, None, None, None, *of_trained
