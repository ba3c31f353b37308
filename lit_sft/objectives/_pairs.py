"""What objectives on pairs share: rewards, their metrics, and the likelihood of the chosen answer as a further term."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from lit_sft.errors import ConfigError
from lit_sft.objectives._base import Answers, ItemLosses, Objective

Average = Literal["answers", "tokens"]


class PairObjective(Objective):
    """A mean over pairs of a function of the log-probabilities of both answers.

    Args:
        beta: How closely the policy is held to where it came from; scales the rewards, which the metrics show for every
            objective.
        sft_weight: Weight of the negative log-likelihood of the chosen answer, which is added to the loss: 0.1 to 0.2
            where the log-probability of the chosen answers falls.
        sft_average: Over what its mean is taken. `answers`: over the tokens of an answer, then over answers; the same
            however an optimizer step is cut into micro-batches (RPO: arXiv:2404.19733). `tokens`: over all chosen
            tokens of a micro-batch, as TRL does: long answers weigh more, and the cut matters.
    """

    shows_means: bool = False
    """Whether rewards and log-probabilities in the metrics are means over the tokens of an answer and not sums."""

    def __init__(self, beta: float = 0.1, *, sft_weight: float = 0.0, sft_average: Average = "answers") -> None:
        if beta <= 0:
            raise ConfigError(f"beta is {beta}; it must be above 0")
        if sft_weight < 0:
            raise ConfigError(f"sft_weight is {sft_weight}; it must not be below 0")
        self.beta = beta
        self.sft_weight = sft_weight
        self.sft_average = sft_average
        rewards = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
        self.measures = (*rewards, "logps/chosen", "logps/rejected", *(("nll_loss",) if sft_weight else ()))

    @abstractmethod
    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        """The loss of each pair, [P], without the likelihood of the chosen answer."""

    def rewards(self, answers: Answers) -> Tensor:
        """By how much the policy prefers each answer, [P]; beta times the log-ratio, summed over its tokens."""
        if self.needs_reference:
            return self.beta * answers.ratios
        return self.beta * (answers.means if self.shows_means else answers.logps)

    def __call__(self, answers: Answers, items: Tensor) -> ItemLosses:
        """The loss of each pair; see the base class."""
        chosen, rejected = answers[items[:, 0]], answers[items[:, 1]]
        losses = self.losses(chosen, rejected)
        with torch.no_grad():
            better, worse = self.rewards(chosen), self.rewards(rejected)
            shown = [side.means if self.shows_means else side.logps for side in (chosen, rejected)]
            # A tie is not right: where the policy still is the reference, nothing is.
            measures = [better, worse, better - worse, better > worse, *shown]
        if self.sft_weight:
            likelihood = self._negative_likelihood(chosen)
            losses = losses + self.sft_weight * likelihood
            measures.append(likelihood)
        columns = torch.stack([column.detach().to(losses.dtype) for column in measures], dim=1)
        return ItemLosses(losses, torch.ones_like(losses.detach()), columns, items[:, 0])

    def _negative_likelihood(self, chosen: Answers) -> Tensor:
        """[P], whose mean over pairs is the mean that was asked for."""
        logps, lengths = self.likelihood_of(chosen)
        if self.sft_average == "answers":
            return -logps / lengths
        return -logps * (len(lengths) / lengths.sum())

    def likelihood_of(self, chosen: Answers) -> tuple[Tensor, Tensor]:
        """Log-probabilities and tokens of what the further term makes likely, [P] each."""
        return chosen.logps, chosen.lengths
