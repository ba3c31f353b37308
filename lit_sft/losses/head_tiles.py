"""An output head over many positions, a chunk of them at a time, and what a softmax says of their targets.

Whoever asks writes over the logits: the softmax takes their place, and gradients that of the softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CHUNK = 512
"""Positions whose logits live at once on a GPU, which reads and writes the gradient of the head for each chunk."""

CPU_CHUNK = 128
"""The same on a CPU: their logits fit into its caches."""


def chunk_size_for(hidden: Tensor) -> int:
    """How many of the hidden states [N, H] to give the head at once, by the device that they are on."""
    return CPU_CHUNK if hidden.device.type == "cpu" else CHUNK


def differentiable(
    head: nn.Module, trained: tuple[Tensor, ...], hidden: Tensor, chunk_size: int
) -> LinearHead | AnyHead:
    """The head, ready to give logits of `chunk_size` rows of `hidden` and to carry gradients of them on.

    Args:
        head: Maps [N, H] to logits [N, V], each row by itself.
        trained: Its parameters that get gradients.
        hidden: [N, H].
        chunk_size: Rows at a time, at most.
    """
    if _is_plain(head):
        return LinearHead(head, hidden, min(chunk_size, len(hidden)))
    return AnyHead(head, trained)


def target_losses(logits: Tensor, targets: Tensor, z_loss_weight: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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


def _is_plain(head: nn.Module) -> bool:
    """Whether it is a linear layer and nothing else happens when it is called."""
    return type(head) is nn.Linear and not head._forward_hooks and not head._forward_pre_hooks


class LinearHead:
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


class AnyHead:
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
