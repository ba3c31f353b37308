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

CHUNK = 512
"""Positions whose logits live at once on a GPU, which reads and writes the gradient of the head for each chunk."""

CPU_CHUNK = 128
"""The same on a CPU: their logits fit into its caches."""


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
    chunk_size = chunk_size or (CPU_CHUNK if hidden.device.type == "cpu" else CHUNK)
    if torch.is_grad_enabled():
        trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
        totals: tuple[Tensor, Tensor, Tensor] = _HeadCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden, targets, head, chunk_size, z_loss_weight, *trained
        )
        return totals
    parts = [
        _losses(head(hidden_part).float(), target_part, z_loss_weight)[:2]
        for hidden_part, target_part in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True)
    ]
    losses, hits = (torch.cat(part) for part in zip(*parts, strict=True))
    return losses.sum(), losses, hits


def _losses(logits: Tensor, targets: Tensor, z_loss_weight: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss of each target, whether no other logit is as high, the softmax's divisor and the highest logit, [N] each.

    The float32 logits [N, V] become their exponentials, in units of that of the highest.
    """
    place = targets[:, None]
    of_target = logits.gather(1, place)
    # Only the highest of the others, without its place, which takes three times as long to find on a CPU.
    of_others = logits.scatter_(1, place, -torch.inf).amax(1, keepdim=True)
    highest = torch.maximum(of_target, of_others)
    total = logits.scatter_(1, place, of_target).sub_(highest).exp_().sum(1)
    losses = total.log() + (highest - of_target).squeeze(1)
    if z_loss_weight:
        losses += z_loss_weight * highest.squeeze(1).square()
    return losses, (of_target > of_others).squeeze(1), total, highest.squeeze(1)


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
        differentiated: _LinearHead | _AnyHead
        if _is_plain(head):
            differentiated = _LinearHead(head, hidden, min(chunk_size, len(hidden)))
        else:
            differentiated = _AnyHead(head, trained)
        losses, hits, of_hidden = [], [], []
        for hidden_part, target_part in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True):
            scores = differentiated.logits(hidden_part)
            loss, is_first, total, highest = _losses(scores, target_part, z_loss_weight)
            losses.append(loss)
            hits.append(is_first)
            if hidden.requires_grad or trained:
                at_highest = scores.argmax(1, keepdim=True) if z_loss_weight else None
                scores.div_(total[:, None]).scatter_add_(1, target_part[:, None], -torch.ones_like(total)[:, None])
                if at_highest is not None:
                    scores.scatter_add_(1, at_highest, 2 * z_loss_weight * highest[:, None])
                of_hidden.append(differentiated.backward(scores))
        ctx.gradients = [torch.cat(of_hidden) if hidden.requires_grad else None, *differentiated.of_trained]
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
        return of_hidden, None, None, None, None, *of_trained


def _is_plain(head: nn.Module) -> bool:
    """Whether it is a linear layer and nothing else happens when it is called."""
    return type(head) is nn.Linear and not head._forward_hooks and not head._forward_pre_hooks


class _LinearHead:
    """A linear layer, differentiated by hand: its gradient grows in place, and one piece of memory holds all logits.

    Scores are converted before any scaling of the loss: in float16 those below 6e-8 are zero, but none overflows.
    """

    def __init__(self, head: nn.Module, hidden: Tensor, chunk_size: int) -> None:
        assert isinstance(head, nn.Linear)
        device = hidden.device.type
        is_mixed = torch.is_autocast_enabled(device)
        self._dtype = torch.get_autocast_dtype(device) if is_mixed else head.weight.dtype
        self._weight = head.weight.detach().to(self._dtype)
        bias: Tensor | None = head.bias  # typed as if there always were one
        self._bias = None if bias is None else bias.detach().to(self._dtype)
        self._memory = self._weight.new_empty(chunk_size, len(self._weight))
        self.of_trained = [torch.zeros_like(p, requires_grad=False) for p in head.parameters() if p.requires_grad]
        self._trains_weight = head.weight.requires_grad
        self._trains_bias = bias is not None and bias.requires_grad

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, V] in float32, to be written over."""
        with torch.autocast(hidden.device.type, enabled=False):
            self._hidden_dtype, self._hidden = hidden.dtype, hidden.detach().to(self._dtype)
            memory = self._memory[: len(hidden)]
            if self._bias is None:
                return torch.mm(self._hidden, self._weight.T, out=memory).float()
            return torch.addmm(self._bias, self._hidden, self._weight.T, out=memory).float()

    def backward(self, scores: Tensor) -> Tensor:
        """Gradient of the hidden states [N, H] of those of the logits [N, V]; that of the head is added to."""
        with torch.autocast(scores.device.type, enabled=False):
            if self._trains_bias:
                self.of_trained[-1] += scores.sum(0)
            scores = scores.to(self._dtype)
            if self._trains_weight and self.of_trained[0].dtype == self._dtype:
                self.of_trained[0].addmm_(scores.T, self._hidden)
            elif self._trains_weight:
                self.of_trained[0] += scores.T @ self._hidden
            return (scores @ self._weight).to(self._hidden_dtype)


class _AnyHead:
    """A head that autograd differentiates."""

    def __init__(self, head: nn.Module, trained: tuple[Tensor, ...]) -> None:
        self._head = head
        self._trained = trained
        self.of_trained: list[Tensor] = []

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, V] in float32, to be written over."""
        with torch.enable_grad():
            self._hidden = hidden.detach().requires_grad_()
            self._logits = self._head(self._hidden)
        # A copy: the graph may need them as they are.
        scores: Tensor = self._logits.detach().to(torch.float32, copy=True)
        return scores

    def backward(self, scores: Tensor) -> Tensor:
        """Gradient of the hidden states [N, H] of those of the logits [N, V]; that of the head is added to."""
        scores = scores.to(self._logits.dtype)
        gradients: tuple[Tensor, ...] = torch.autograd.grad(self._logits, [self._hidden, *self._trained], scores)
        earlier = self.of_trained or map(torch.zeros_like, gradients[1:])
        self.of_trained = [a.add_(b) for a, b in zip(earlier, gradients[1:], strict=True)]
        return gradients[0]
