"""Losses of policy gradients: a surrogate of each token or answer, and what its mean is taken over.

All grids are [R, T]: answers from the left, what stands beyond them is not read. Losses come as sums by row with what
they count, to be divided by the counts of the whole optimizer step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_sft.losses.kl import k2, k3

Ratio = Literal["token", "mean", "answer"]
"""Of what the probability is compared with the old one: each token, the geometric mean of them, or the whole answer."""

Mean = Literal["tokens", "answers", "constant"]
"""Over what the loss is a mean: all tokens of the step; the tokens of an answer, then answers; or as many tokens as
every answer could have had. By answers, tokens of short ones weigh more; by tokens, the random number of them bends the
gradient a little; only the constant leaves it that of the expected reward."""


@dataclass(frozen=True)
class PolicyLoss:
    """A loss of the family; the names below are members of it.

    Args:
        ratio: Of what the probability is compared with the old one.
        mean: Over what the loss is a mean. A ratio of whole answers has one loss for each: `mean` has no part then.
        clip_low: How far below 1 a ratio still gains.
        clip_high: How far above 1.
        clips_weight: Whether a ratio above 1 + `clip_high` only weighs no more, its token still learning (CISPO). Then
            `clip_low` has no part.
        largest_ratio: Beyond which a ratio weighs no more where the advantage is negative (two-sided clipping).
        kl_weight: Weight of the KL to the reference in the loss, token by token.
        corrects_kl: Whether it is weighted by the ratio: see losses/kl.py for what that comes to.
        entropy_weight: Of a bonus for the entropy of each token.
    """

    ratio: Ratio = "token"
    mean: Mean = "tokens"
    clip_low: float = 0.2
    clip_high: float = 0.2
    clips_weight: bool = False
    largest_ratio: float | None = None
    kl_weight: float = 0.0
    corrects_kl: bool = True
    entropy_weight: float = 0.0


POLICY_LOSSES = {
    "grpo": PolicyLoss(mean="answers"),  # arXiv:2402.03300
    "dr_grpo": PolicyLoss(mean="constant"),  # arXiv:2503.20783
    "dapo": PolicyLoss(clip_high=0.28),  # arXiv:2503.14476
    "gspo": PolicyLoss(ratio="mean", mean="answers", clip_low=3e-4, clip_high=4e-4),  # arXiv:2507.18071
    "cispo": PolicyLoss(clips_weight=True, clip_high=4.0),  # arXiv:2506.13585
    "rloo": PolicyLoss(ratio="answer", mean="answers"),  # arXiv:2402.14740
    "ppo": PolicyLoss(),  # arXiv:1707.06347
}
"""Published losses by name; `dataclasses.replace` changes their options."""


class PolicyTotals(NamedTuple):
    """Of each answer, [R]; all but `losses` without a graph.

    `losses` are to be summed and divided by the sum of `counts` over the step. `num_ratios` is how many ratios it has,
    its tokens or one; of these so many lie below and above the range and are held back by it (`clipped_low`,
    `clipped_high`). `kl` is the sum over its tokens of the estimate of the KL to the reference that the loss uses,
    `drift` that of `k2` to the old policy.
    """

    losses: Tensor
    counts: Tensor
    num_ratios: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    kl: Tensor
    drift: Tensor


def policy_totals(
    loss: PolicyLoss,
    logps: Tensor,
    mask: Tensor,
    advantages: Tensor,
    *,
    old: Tensor | None = None,
    reference: Tensor | None = None,
    entropy: Tensor | None = None,
    max_tokens: int = 1,
) -> PolicyTotals:
    """The loss of a micro-batch of answers.

    Args:
        loss: Which.
        logps: Log-probabilities of the tokens [R, T], to back-propagate.
        mask: Bool [R, T].
        advantages: Of answers [R], or of tokens [R, T] for a ratio of each token.
        old: Log-probabilities under the policy that wrote the answers; where that is the same policy still, they need
            not be given, and the ratio is 1.
        reference: Under the reference, for the KL.
        entropy: Of each token, to back-propagate, for the bonus.
        max_tokens: As many tokens as an answer could have had, for `constant`.
    """
    logps = torch.where(mask, logps, 0.0)
    old = logps.detach() if old is None else torch.where(mask, old, 0.0)
    ratios = _ratios(loss.ratio, logps - old, mask)
    advantages = advantages[:, None] if advantages.ndim == 1 else advantages
    surrogate, is_low, is_high = _surrogate(loss, ratios, advantages, logps)
    of_tokens = torch.zeros_like(logps)
    kl = torch.zeros_like(logps)
    if reference is not None:
        kl = k3(logps, torch.where(mask, reference, logps.detach()))
        kl = kl * ratios if loss.corrects_kl else kl
        of_tokens = of_tokens + loss.kl_weight * kl
    if entropy is not None:
        of_tokens = of_tokens - loss.entropy_weight * entropy
    if loss.ratio == "answer":
        losses = surrogate.squeeze(1) + torch.where(mask, of_tokens, 0.0).sum(1)
        counts = torch.ones_like(losses)
    else:
        losses, counts = _reduced(loss.mean, surrogate + of_tokens, mask, max_tokens)
    with torch.no_grad():
        counted = mask if loss.ratio == "token" else torch.ones_like(mask[:, :1])
        num_ratios, low, high = ((grid & counted).sum(1).to(losses.dtype) for grid in (counted, is_low, is_high))
        kl = torch.where(mask, kl, 0.0).sum(1)
        return PolicyTotals(losses, counts.detach(), num_ratios, low, high, kl, k2(logps, old).sum(1))


def _ratios(kind: Ratio, log_ratios: Tensor, mask: Tensor) -> Tensor:
    """[R, T] of log-ratios that are 0 beyond an answer, or [R, 1]."""
    if kind == "token":
        return log_ratios.exp()
    total = log_ratios.sum(1, keepdim=True)
    return (total / mask.sum(1, keepdim=True) if kind == "mean" else total).exp()


def _surrogate(loss: PolicyLoss, ratios: Tensor, advantages: Tensor, logps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What is minimized, as the ratios are shaped, and which are held back below and above."""
    is_low = (ratios < 1 - loss.clip_low) & (advantages < 0)
    is_high = (ratios > 1 + loss.clip_high) & (advantages > 0)
    if loss.clips_weight:
        weights = ratios.detach().clamp_max(1 + loss.clip_high)
        return -weights * advantages * logps, torch.zeros_like(is_low), is_high
    clipped = ratios.clamp(1 - loss.clip_low, 1 + loss.clip_high)
    capped = ratios if loss.largest_ratio is None else ratios.clamp_max(loss.largest_ratio)
    return -torch.minimum(capped * advantages, clipped * advantages), is_low, is_high


def _reduced(mean: Mean, grid: Tensor, mask: Tensor, max_tokens: int) -> tuple[Tensor, Tensor]:
    """Losses and counts [R] of the losses of tokens."""
    sums, lengths = torch.where(mask, grid, 0.0).sum(1), mask.sum(1).to(grid.dtype)
    if mean == "tokens":
        return sums, lengths
    return sums / (lengths if mean == "answers" else max_tokens), torch.ones_like(lengths)
