"""Logits processors of our own: without padding, and drawing for each row by itself."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from transformers import LogitsProcessor


class WithoutPadding(LogitsProcessor):
    """Another processor that looks at the tokens before, of which padding is none.

    Args:
        inner: That processor.
        padding: Columns at the left of each prompt that are padding.
    """

    def __init__(self, inner: LogitsProcessor, padding: Sequence[int]) -> None:
        self.inner = inner
        self.padding = padding

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] of sequences [B, T]; the beams of a prompt stand side by side."""
        num_beams = len(input_ids) // len(self.padding)
        rows = [
            self.inner(input_ids[row : row + 1, self.padding[row // num_beams] :], scores[row : row + 1])
            for row in range(len(input_ids))
        ]
        return torch.cat(rows)


class Draw(LogitsProcessor):
    """Leaves one token of each row, drawn with its probability: the point that a random number hits on their line.

    Args:
        seeds: Of each row, for a generator of its own.
    """

    def __init__(self, seeds: Sequence[str]) -> None:
        self.generators = [Random(seed) for seed in seeds]  # noqa: S311 - no secret depends on it

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V]: 0 for the token drawn, minus infinity for all others."""
        drawn = draw(scores.double().softmax(-1), [generator.random() for generator in self.generators])
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn[:, None], 0.0)


def draw(probabilities: torch.Tensor, numbers: Sequence[float]) -> torch.Tensor:
    """A token of each row [B], by its probabilities [B, V] float64: the one that the number of the row hits.

    One number a token, and not one for each of the vocabulary: where rounding differs, as it does from batch to batch,
    the token is another only if the number lies between the two borders.

    Args:
        probabilities: [B, V].
        numbers: Of each row, from 0 up to 1.
    """
    ends = probabilities.cumsum(-1)
    points = torch.tensor(numbers, dtype=ends.dtype, device=ends.device)[:, None] * ends[:, -1:]
    # To the right of equal ends: a token without probability is never hit.
    return torch.searchsorted(ends, points, right=True).clamp_(max=ends.shape[1] - 1)[:, 0]
