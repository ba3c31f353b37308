"""Output head and cross-entropy in one, a chunk of positions at a time.

The gradient of the loss with respect to the logits is the softmax less the target, so it can be made in the forward
pass, where the logits are at hand: they take the place of the logits, are carried on through the head at once, and only
the gradients of the hidden states and of the head are kept for the backward pass. The idea is that of Hsu et al. 2024
(Liger Kernel, arXiv:2410.10989), here for any head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK = 512
"""Positions whose logits live at once. On a CPU any number from 128 is as fast; on a GPU that of full tuning reads and
writes the gradient of the head for each chunk, which few and large ones keep small."""


def head_cross_entropy(
    hidden: Tensor, targets: Tensor, head: nn.Module, chunk_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the losses, to back-propagate once; without a graph that of each target and whether it ranks first.

    Args:
        hidden: [N, H].
        targets: [N].
        head: Maps [N, H] to logits [N, V], each row by itself.
        chunk_size: Positions whose logits live at once.

    Returns:
        A float32 scalar, and float32 [N] and bool [N].
    """
    if torch.is_grad_enabled():
        trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
        totals: tuple[Tensor, Tensor, Tensor] = _HeadCrossEntropy.apply(hidden, targets, head, chunk_size, *trained)  # type: ignore[no-untyped-call]
        return totals
    parts = [
        _losses(head(hidden_part).float(), target_part)[:2]
        for hidden_part, target_part in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True)
    ]
    losses, hits = (torch.cat(part) for part in zip(*parts, strict=True))
    return losses.sum(), losses, hits


def _losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each target, whether no other logit is higher, and by what to divide to get the softmax, [N] each.

    The float32 logits [N, V] become their exponentials.
    """
    highest = logits.amax(1)  # without the place, which takes ten times as long to find on a CPU
    of_target = logits.gather(1, targets[:, None]).squeeze(1)
    total = logits.sub_(highest[:, None]).exp_().sum(1)
    return total.log() + highest - of_target, of_target == highest, total


class _HeadCrossEntropy(torch.autograd.Function):
    """See `head_cross_entropy`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, head: nn.Module, chunk_size: int, *trained: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses, and the gradients for the backward pass."""
        losses, hits, of_hidden = [], [], []
        of_trained: list[Tensor] = []
        for hidden_part, target_part in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True):
            with torch.enable_grad():
                part = hidden_part.detach().requires_grad_(hidden.requires_grad)
                logits = head(part)
            scores = logits.detach().float()
            loss, is_first, total = _losses(scores, target_part)
            losses.append(loss)
            hits.append(is_first)
            if not logits.requires_grad:
                continue
            scores.div_(total[:, None]).scatter_add_(1, target_part[:, None], -torch.ones_like(total)[:, None])
            inputs = [part, *trained] if part.requires_grad else trained
            gradients = list(torch.autograd.grad(logits, inputs, scores.to(logits.dtype)))
            if part.requires_grad:
                of_hidden.append(gradients.pop(0))
            of_trained = [a.add_(b) for a, b in zip(of_trained, gradients, strict=True)] if of_trained else gradients
        ctx.gradients = [torch.cat(of_hidden) if of_hidden else None, *of_trained]
        by_target = torch.cat(losses), torch.cat(hits)
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
        return of_hidden, None, None, None, *of_trained
