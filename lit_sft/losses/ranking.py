"""Bradley-Terry: the reward of a better answer is above that of a worse one."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


class Ranking(NamedTuple):
    """Of P pairs, [P] each: `losses` to back-propagate, by how much the better reward is above, and whether it is."""

    losses: Tensor
    margins: Tensor
    is_right: Tensor


def ranking_losses(rewards: Tensor, pairs: Tensor, margins: Tensor | None = None, centering: float = 0.0) -> Ranking:
    """-log sigmoid(better - worse - margin) + centering * (better + worse)^2 of each pair.

    Centering keeps the mean reward at 0, and bends the rewards a little: it is not a free choice of the constant that
    differences leave open. A tie is not right.

    Args:
        rewards: [S], in float32.
        pairs: [P, 2] int64: numbers of the better and the worse answer.
        margins: [P]: how far apart the rewards should be at least (Llama 2, section 3.2.2).
        centering: Weight of the squared sum (arXiv:2312.09244); 0.01 is usual.
    """
    better, worse = rewards[pairs[:, 0]], rewards[pairs[:, 1]]
    difference = better - worse
    above = difference if margins is None else difference - margins
    losses = -F.logsigmoid(above)
    if centering:
        losses = losses + centering * (better + worse).square()
    return Ranking(losses, difference.detach(), difference.detach() > 0)


def pair_weights(prompts: Tensor) -> Tensor:
    """1 over the number of pairs of the same prompt, [P] float32, so that those of a prompt add up to 1.

    A mean over prompts of the mean over all C(K, 2) pairs of their K answers counts a prompt once, however many answers
    it has (InstructGPT, arXiv:2203.02155, section 3.5).

    Args:
        prompts: [P], which prompt each pair belongs to.
    """
    return 1 / (prompts[:, None] == prompts).sum(1)
