"""What the metrics say of a single answer, and by what answers are sorted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lit_sft.report.comparison import Comparison, Row, is_for
from lit_sft.report.metrics import Metric, Reply

SHOWN = ("rouge_l", "perplexity", "repetition")
"""Metrics that say something of one answer."""


@dataclass(frozen=True)
class Score:
    """A metric of one answer, before and after."""

    metric: Metric
    before: float
    after: float

    @property
    def gain(self) -> float:
        """How much better the answer is after; in the metric's own unit."""
        return self.after - self.before if self.metric.better == "higher" else self.before - self.after


def scores(comparison: Comparison, row: Row) -> list[Score]:
    """Rewards first, then the metrics that the row has."""
    rewards = [metric for metric in comparison.metrics if metric.judge and metric.kind == "score"]
    chosen = [*rewards, *(metric for key in SHOWN for metric in comparison.metrics if metric.key == key)]
    found = [
        Score(metric, *(_value(metric, reply, row.reference or "") for reply in (row.before, row.after)))
        for metric in chosen
        if is_for(metric, row)
    ]
    return [score for score in found if math.isfinite(score.before) and math.isfinite(score.after)]


def gain(found: list[Score]) -> float | None:
    """By what an answer is sorted: its first reward, else how near it is to the reference; None without either."""
    first = next((score for score in found if score.metric.by_strategy and score.metric.key != "repetition"), None)
    return first.gain if first else None


def _value(metric: Metric, reply: Reply, reference: str) -> float:
    return float(metric.value(np.array(metric.count(reply, reference), np.float64)))
