"""Log-probabilities of targets under an output head, which any loss may be made of, a chunk of positions at a time.

A loss that is only known later needs the gradient of each log-probability by itself. Under a head that stays as it is
that is one row for each position, (W[y] - sum_v p_v W[v]) / temperature, made in the forward pass where the logits are
at hand. Where the head trains too, or entropies are part of the loss, logits are computed a second time instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lit_sft.losses.head_tiles import AnyHead, LinearHead, chunk_size_for, differentiable, target_losses


class TokenLogProbs(NamedTuple):
    """What a softmax over the vocabulary says at N positions, float32 [N] each; `is_first` is bool.

    `logps` of the targets can be back-propagated, `entropy` (nats) where that was asked for. `is_first`: no other token
    is as likely as the target. `mean_logits`: mean over the vocabulary, after the temperature. `collisions`: log of
    the sum of the squared probabilities, by which WPO (arXiv:2406.11827) compares a log-probability with what the
    policy would sample. What is not measured is zero.
    """

    logps: Tensor
    entropy: Tensor
    is_first: Tensor
    mean_logits: Tensor
    collisions: Tensor


class _Options(NamedTuple):
    temperature: float
    chunk_size: int
    is_measured: bool
    differentiates_entropy: bool


def token_log_probs(
    hidden: Tensor,
    targets: Tensor,
    head: nn.Module,
    *,
    temperature: float = 1.0,
    is_measured: bool = False,
    differentiates_entropy: bool = False,
    chunk_size: int | None = None,
) -> TokenLogProbs:
    """Log-probabilities of targets, the same to the bit whether or not gradients are recorded.

    Args:
        hidden: Hidden states [N, H], those that predict the targets.
        targets: [N].
        head: Maps [N, H] to logits [N, V], each row by itself.
        temperature: Divides the logits.
        is_measured: Whether to measure entropies, mean logits and collisions too.
        differentiates_entropy: Whether a loss may be made of the entropies, which are measured then.
        chunk_size: Positions whose logits live at once; what suits the device if not given.
    """
    is_measured |= differentiates_entropy
    options = _Options(temperature, chunk_size or chunk_size_for(hidden), is_measured, differentiates_entropy)
    if torch.is_grad_enabled():
        trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
        if hidden.requires_grad or trained:
            return TokenLogProbs(*_HeadLogProbs.apply(hidden, targets, head, options, *trained))  # type: ignore[no-untyped-call]
    logits = _logits_without_graph(head, differentiable(head, (), hidden, options.chunk_size))
    return _over_tiles(hidden, targets, logits, options)[0]


def _logits_without_graph(head: nn.Module, tiles: LinearHead | AnyHead) -> Callable[[Tensor], Tensor]:
    # By the same operations as with a graph: the numbers are equal.
    return tiles.logits if isinstance(tiles, LinearHead) else lambda part: head(part).to(torch.float32, copy=True)


def _over_tiles(
    hidden: Tensor,
    targets: Tensor,
    logits: Callable[[Tensor], Tensor],
    options: _Options,
    backward: Callable[[Tensor], Tensor] | None = None,
) -> tuple[TokenLogProbs, Tensor | None, Tensor]:
    """The measures; with `backward` the gradient [N, H] of each log-probability; the log of the softmax's divisor."""
    parts: list[tuple[Tensor, ...]] = []
    gradients: list[Tensor] = []
    for hidden_part, target_part in zip(
        hidden.split(options.chunk_size), targets.split(options.chunk_size), strict=True
    ):
        scores = logits(hidden_part)
        if options.temperature != 1:
            scores.div_(options.temperature)
        mean_logits = scores.mean(1) if options.is_measured else scores.new_zeros(len(scores))
        losses, is_first, total, highest = target_losses(scores, target_part, 0.0)
        entropy = collisions = torch.zeros_like(losses)
        if options.is_measured:  # of exponentials, in units of the highest
            entropy = total.log() + torch.special.entr(scores).sum(1) / total
            collisions = 2 * (torch.linalg.vector_norm(scores, dim=1) / total).log()
        parts.append((-losses, entropy, is_first, mean_logits, collisions, total.log() + highest))
        if backward:
            scale = -1 / (options.temperature * total)
            scores.mul_(scale[:, None])
            scores.scatter_add_(1, target_part[:, None], torch.full_like(scale, 1 / options.temperature)[:, None])
            gradients.append(backward(scores))
    *measures, divisors = (torch.cat(part) for part in zip(*parts, strict=True))
    return TokenLogProbs(*measures), torch.cat(gradients) if gradients else None, divisors


class _HeadLogProbs(torch.autograd.Function):
    """See `token_log_probs`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, head: nn.Module, options: _Options, *trained: Tensor
    ) -> tuple[Tensor, ...]:
        """Measures, and what the backward pass needs."""
        tiles = differentiable(head, trained, hidden, options.chunk_size)
        ctx.is_repeated = bool(trained) or options.differentiates_entropy
        if ctx.is_repeated:
            measures, _, divisors = _over_tiles(hidden, targets, _logits_without_graph(head, tiles), options)
            ctx.save_for_backward(hidden, targets, divisors, measures.entropy, *trained)
            device = hidden.device.type
            ctx.head, ctx.options = head, options
            ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        else:
            measures, gradients, _ = _over_tiles(hidden, targets, tiles.logits, options, tiles.backward)
            ctx.save_for_backward(gradients)
        fixed = measures[2:] if options.differentiates_entropy else measures[1:]
        ctx.mark_non_differentiable(*fixed)
        return tuple(measures)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logps: Tensor, of_entropy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of hidden states and head."""
        if not ctx.is_repeated:
            (gradients,) = ctx.saved_tensors
            return gradients * of_logps[:, None].to(gradients.dtype), None, None, None
        hidden, targets, divisors, entropies, *trained = ctx.saved_tensors
        options = ctx.options
        of_hidden = []
        device, dtype, is_mixed = ctx.autocast
        with torch.autocast(device, dtype, enabled=is_mixed):
            tiles = differentiable(ctx.head, tuple(trained), hidden, options.chunk_size)
            by_position = targets, divisors, entropies, of_logps, of_entropy
            parts = (tensor.split(options.chunk_size) for tensor in by_position)
            for hidden_part, *others in zip(hidden.split(options.chunk_size), *parts, strict=True):
                of_hidden.append(tiles.backward(_of_logits(tiles.logits(hidden_part), options, *others)))
        return torch.cat(of_hidden) if ctx.needs_input_grad[0] else None, None, None, None, *tiles.of_trained


def _of_logits(
    logits: Tensor,
    options: _Options,
    targets: Tensor,
    divisors: Tensor,
    entropies: Tensor,
    of_logps: Tensor,
    of_entropy: Tensor,
) -> Tensor:
    """Gradient of logits [N, V], which are written over: w (1_y - p) for log p_y, and -u p (log p + entropy)."""
    logps = logits.div_(options.temperature).sub_(divisors[:, None])
    if options.differentiates_entropy:
        factors = torch.addcmul(of_logps[:, None], logps + entropies[:, None], of_entropy[:, None])
        scores = logps.exp_().mul_(factors).neg_()
    else:
        scores = logps.exp_().mul_(-of_logps[:, None])
    return scores.scatter_add_(1, targets[:, None], of_logps[:, None]).div_(options.temperature)
