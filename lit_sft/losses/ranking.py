"""Bradley-Terry: the reward of a better answer is above that of a worse one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Ranking(NamedTuple):
    """Of P pairs, [P] each: `losses` to back-propagate, by how much the better reward is above, and whether it is."""

    losses: Tensor
    margins: Tensor
    is_right: Tensor


def ranking_losses(rewards: Tensor, pairs: Tensor, margins: Tensor | None = None, centering: float = 0.0) -> Ranking:
    """-log sigmoid(better - worse - margin) + centering * (better + worse)^2 of each pair.

    Centering keeps the mean reward at 0, and bends the rewards a little: it is no free choice of the constant that
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


def pairs_of_ranked(num_answers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """All pairs of the answers of each prompt, which stand one after the other, the best first (InstructGPT).

    Args:
        num_answers: Of each prompt.

    Returns:
        `pairs` [P, 2] int64, numbers of answers; `weights` [P] float32, which add up to 1 for each prompt: a loss that
        is a mean over prompts counts a prompt once, however many answers it has.
    """
    pairs, weights, start = [], [], 0
    for count in num_answers:
        own = list(combinations(range(start, start + count), 2))
        pairs += own
        weights += [1 / len(own)] * len(own)
        start += count
    return torch.tensor(pairs, dtype=torch.int64).view(-1, 2), torch.tensor(weights)
