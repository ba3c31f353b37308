"""An objective: what preference optimization makes of the log-probabilities of answers. One file is one or more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lit_sft.losses.segments import sums_by_group

Item = Literal["pairs", "verdicts"]
"""What the loss is a mean over: pairs of answers to one prompt, or answers that were judged one by one."""


@dataclass(frozen=True)
class Answers:
    """The answers of a micro-batch, S sequences: of each a number, [S].

    Args:
        logps: Log-probability under the policy, to back-propagate: the sum over the tokens of the answer, its end
            included, as `Objective.summed` makes it.
        lengths: Those tokens, int64.
        reference: The same log-probability under the reference, without a graph.
        certainty: Mean over the tokens of `logps - collisions` (losses/logprobs.py), without a graph.
        whole_logps: Sum over prompt and answer, to back-propagate.
        whole_lengths: Tokens of that sum, int64.
    """

    logps: Tensor
    lengths: Tensor
    reference: Tensor | None = None
    certainty: Tensor | None = None
    whole_logps: Tensor | None = None
    whole_lengths: Tensor | None = None

    def __getitem__(self, numbers: Tensor) -> Answers:
        """The answers of these numbers [P]."""
        # Not by index_select, whose gradients CUDA adds up in any order.
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value[numbers] for name, value in values.items() if value is not None})

    @property
    def ratios(self) -> Tensor:
        """Log-probability under the policy less that under the reference, [S]."""
        assert self.reference is not None, "the objective needs a reference"
        return self.logps - self.reference

    @property
    def means(self) -> Tensor:
        """Log-probability of a token, averaged over the answer, [S]."""
        return self.logps / self.lengths

    @property
    def mean_ratios(self) -> Tensor:
        """Log-ratio of a token, averaged over the answer, [S]."""
        return self.ratios / self.lengths


@dataclass(frozen=True)
class ItemLosses:
    """What a micro-batch adds to the sums of an optimizer step, by item, so that they can be told apart by corpus.

    Args:
        losses: [I], to back-propagate as a sum, and to divide by the sum of the counts of the whole step.
        counts: [I], 1; 0 for what stands in the micro-batch without being an item.
        measures: [I, M], without a graph, in the order of `Objective.measures`.
        sequences: [I] int64: the answer an item belongs to, the better one of a pair.
    """

    losses: Tensor
    counts: Tensor
    measures: Tensor
    sequences: Tensor

    def by_group(self, groups: Tensor, num_groups: int) -> Tensor:
        """Sums of losses, counts and measures, [G, 2 + M] float64, without a graph.

        Args:
            groups: [S], from 0: the group of each answer.
            num_groups: G.
        """
        columns = torch.cat([self.losses.detach()[:, None], self.counts[:, None], self.measures], dim=1)
        return sums_by_group(columns, groups[self.sequences], num_groups)


class Objective(ABC):
    """What is minimized: a mean over pairs or judged answers of an optimizer step."""

    items: ClassVar[Item] = "pairs"

    measures: tuple[str, ...]
    """Names of the sums beside the loss."""

    needs_reference: ClassVar[bool] = True
    """Whether `Answers.reference` must be given."""

    needs_certainty: ClassVar[bool] = False
    """Whether `Answers.certainty` must be given."""

    needs_prompts: bool = False
    """Whether `Answers.whole_logps` must be given."""

    needs_mismatched: bool = False
    """Whether answers that belong to other prompts (verdict -1) are wanted in each micro-batch."""

    @abstractmethod
    def __call__(self, answers: Answers, items: Tensor) -> ItemLosses:
        """The loss of each item.

        Args:
            answers: S of them.
            items: For `pairs`, [P, 2] int64: numbers of the chosen and of the rejected answer. For `verdicts`, [S]
                int64: 1 for a good answer, 0 for a bad one, -1 for one that belongs to another prompt.
        """

    def means(self, count: float, *sums: float) -> dict[str, float]:
        """Metrics of so many items by name, from the sums of `measures`; the tails of the names are TRL's."""
        return {name: value / count for name, value in zip(self.measures, sums, strict=True)}

    def summed(self, logps: Tensor, lengths: Tensor, items: Tensor) -> Tensor:
        """The log-probability of an answer, [S]; under policy and reference alike.

        Args:
            logps: Of its tokens, [S, T], zero beyond its length.
            lengths: [S] int64.
            items: As for the loss.
        """
        return logps.sum(1)
