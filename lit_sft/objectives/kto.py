"""Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306): answers judged one by one."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_sft.errors import ConfigError
from lit_sft.objectives._base import Answers, ItemLosses, Objective

Baseline = Literal["none", "mismatched"]


class KTO(Objective):
    """A good answer gains from a reward above a baseline, a bad one from a reward below it; both saturate.

    Args:
        beta: How closely the policy is held to the reference.
        baseline: `none`: 0, whatever the batch (APO-zero for unpaired answers: arXiv:2408.06266). `mismatched`: beta
            times the mean log-ratio of answers that belong to other prompts, at least 0, as in the paper. It is that of
            the micro-batch: the loss depends on how an optimizer step is cut.
        good_weight: Of the good answers. The products of weights and numbers of good and bad ones should have a ratio
            of 1 to 1.33.
        bad_weight: Of the bad answers.
    """

    items = "verdicts"

    measures = ("num_good", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "kl")

    def __init__(
        self,
        beta: float = 0.1,
        *,
        baseline: Baseline = "none",
        good_weight: float = 1.0,
        bad_weight: float = 1.0,
    ) -> None:
        if beta <= 0:
            raise ConfigError(f"beta is {beta}; it must be above 0")
        self.beta = beta
        self.needs_mismatched = baseline == "mismatched"
        self.good_weight = good_weight
        self.bad_weight = bad_weight

    def __call__(self, answers: Answers, items: Tensor) -> ItemLosses:
        """The loss of each judged answer, 0 for those of other prompts; see the base class."""
        ratios = answers.ratios
        is_good, is_bad, is_other = items == 1, items == 0, items == -1
        baseline = self._baseline(ratios.detach(), is_other)
        above = self.beta * (ratios - baseline)
        losses = torch.where(is_good, self.good_weight * (1 - above.sigmoid()), 0.0)
        losses = losses + torch.where(is_bad, self.bad_weight * (1 - (-above).sigmoid()), 0.0)
        with torch.no_grad():
            counts = (~is_other).to(losses.dtype)
            rewards, logps = self.beta * ratios, answers.logps.detach()
            sides = [torch.where(side, value, 0.0) for value in (rewards, logps) for side in (is_good, is_bad)]
            measures = torch.stack([is_good.to(losses.dtype), *sides, baseline * counts], dim=1)
        return ItemLosses(losses, counts, measures, torch.arange(len(items), device=items.device))

    def _baseline(self, ratios: Tensor, is_other: Tensor) -> Tensor:
        if not self.needs_mismatched:
            return ratios.new_zeros(())
        mean = torch.where(is_other, ratios, 0.0).sum() / is_other.sum().clamp_min(1)
        return mean.clamp_min(0)

    def means(self, count: float, *sums: float) -> dict[str, float]:
        """Metrics by TRL's names: those of good answers are means over them, and so are those of bad ones."""
        num_good, good_reward, bad_reward, good_logps, bad_logps, kl = sums
        metrics = {"kl": kl / count}
        if num_good:
            metrics |= {"rewards/chosen": good_reward / num_good, "logps/chosen": good_logps / num_good}
        if num_bad := count - num_good:
            metrics |= {"rewards/rejected": bad_reward / num_bad, "logps/rejected": bad_logps / num_bad}
        if num_good and num_bad:
            metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        return metrics
