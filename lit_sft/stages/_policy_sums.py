"""What is summed of a micro-batch of a policy's answers, and the metrics that become of it in a step."""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

from lit_sft.losses.policy import PolicyTotals
from lit_sft.losses.segments import sums_by_group
from lit_sft.stages._rollout_buffer import Part, RolloutBuffer

MEASURES = ("num_tokens", "num_ratios", "entropies", "kls", "drifts", "clipped_low", "clipped_high")
"""Sums beside loss and count."""


class PolicySums(NamedTuple):
    """Sums over a micro-batch; see `Totals`."""

    loss: Tensor
    by_group: Tensor

    @classmethod
    def of(cls, found: PolicyTotals, mask: Tensor, entropy: Tensor, part: Part, rollout: RolloutBuffer) -> Self:
        """The loss to back-propagate, and by corpus loss, count and `MEASURES`.

        Args:
            found: Of each answer of the part.
            mask: Where it has tokens [R, T].
            entropy: Of each token [R, T].
            part: Of the rollout.
            rollout: It.
        """
        columns = [
            *(found.losses.detach(), found.counts, mask.sum(1), found.num_ratios, entropy.detach().sum(1)),
            *(found.kl, found.drift, found.clipped_low, found.clipped_high),
        ]
        table = torch.stack([column.double() for column in columns], dim=1)
        corpora = rollout.corpora[part.members].to(mask.device)
        return cls(found.losses.sum(), sums_by_group(table, corpora, len(rollout.corpus_names)))


def policy_means(*sums: float, has_reference: bool) -> dict[str, float]:
    """Metrics of a step by name, from its sums of `MEASURES`: means over tokens, and shares of ratios."""
    total = dict(zip(MEASURES, sums, strict=True))
    num_tokens, num_ratios = total["num_tokens"] or 1.0, total["num_ratios"] or 1.0
    low, high = total["clipped_low"] / num_ratios, total["clipped_high"] / num_ratios
    return {
        "entropy": total["entropies"] / num_tokens,
        **({"kl": total["kls"] / num_tokens} if has_reference else {}),
        "policy/approxkl_avg": total["drifts"] / num_tokens,
        "clip_ratio/low_mean": low,
        "clip_ratio/high_mean": high,
        "clip_ratio/region_mean": low + high,
    }
