"""What a report shows, before anybody draws it: rows of answers, and the metrics over them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from lit_sft import files
from lit_sft.errors import ConfigError
from lit_sft.report.bootstrap import LEVEL, NUM_DRAWS, Difference, difference
from lit_sft.report.metrics import METRICS, PERPLEXITY, HeldOutLosses, Metric, Reply, reward_metrics
from lit_sft.report.training import Training

ALL = "All prompts"

METRICS_FILE = "metrics.json"
REPORT = (METRICS_FILE, "answers.jsonl", "report.html", "report.md")
"""Files of a report, in the order in which they are written."""


@dataclass(frozen=True)
class Row:
    """A prompt under a strategy, answered before and after."""

    source: str
    category: str
    strategy: str
    prompt: str
    reference: str | None
    before: Reply
    after: Reply
    is_safety: bool = False


@dataclass(frozen=True)
class Measured:
    """A metric of a category under a strategy."""

    metric: Metric
    category: str
    strategy: str
    difference: Difference


@dataclass(frozen=True)
class Comparison:
    """Everything that is known of a model before and after.

    `probed`: held-out data as both predict it. `about`: what was compared, by heading. `judges`: names of the reward
    models that judged the answers. `training`: of the run that is compared.
    """

    title: str
    about: dict[str, str]
    rows: list[Row]
    probed: tuple[HeldOutLosses, HeldOutLosses] = field(default_factory=lambda: ({}, {}))
    seed: int = 42
    judges: Sequence[str] = ()
    training: Training = field(default_factory=Training)

    @property
    def metrics(self) -> list[Metric]:
        """All that is measured, what reward models say first."""
        return [*chain.from_iterable(map(reward_metrics, self.judges)), *METRICS]

    @property
    def categories(self) -> list[str]:
        """In the order in which they come."""
        return list(dict.fromkeys(row.category for row in self.rows))

    @property
    def strategies(self) -> list[str]:
        """In the order in which they come."""
        return list(dict.fromkeys(row.strategy for row in self.rows))

    def measure(self) -> list[Measured]:
        """Every metric over all prompts and over each category, under each strategy."""
        scopes = [ALL, *self.categories] if len(self.categories) > 1 else [ALL]
        counts = {metric.key: self._counts(metric) for metric in self.metrics}
        return [
            Measured(metric, scope, strategy, found)
            for scope in scopes
            for strategy in self.strategies
            for metric in self.metrics
            if (found := self._difference(metric, counts[metric.key], scope, strategy)) is not None
        ]

    def forgetting(self) -> list[Measured]:
        """Perplexity by corpus, over the conversations that both have read."""
        before, after = self.probed
        found = []
        for corpus in [corpus for corpus in before if corpus in after]:
            sources = sorted(before[corpus].keys() & after[corpus].keys())
            old, new = (np.array([side[corpus][source] for source in sources], np.float64) for side in self.probed)
            if sources:
                found.append(Measured(PERPLEXITY, corpus, "", difference(old, new, PERPLEXITY.value, self.seed)))
        return found

    def _counts(self, metric: Metric) -> dict[int, tuple[Sequence[float], Sequence[float]]]:
        """By place of the row; none for a row that the metric is not for."""
        return {
            place: (metric.count(row.before, row.reference or ""), metric.count(row.after, row.reference or ""))
            for place, row in enumerate(self.rows)
            if is_for(metric, row)
        }

    def _difference(
        self,
        metric: Metric,
        counts: dict[int, tuple[Sequence[float], Sequence[float]]],
        scope: str,
        strategy: str,
    ) -> Difference | None:
        chosen = [
            pair
            for place, pair in counts.items()
            if self.rows[place].strategy == strategy and scope in {ALL, self.rows[place].category}
        ]
        if not chosen:
            return None
        before, after = (np.array(part, dtype=np.float64) for part in zip(*chosen, strict=True))
        found = difference(before, after, metric.value, self.seed)
        return found if math.isfinite(found.before) and math.isfinite(found.after) else None


def write_data(comparison: Comparison, measured: Sequence[Measured], folder: Path) -> None:
    """Write metrics.json and answers.jsonl.

    Raises:
        ConfigError: If the folder cannot be written to.
    """
    metrics = {
        "title": comparison.title,
        "about": comparison.about,
        "training": asdict(comparison.training),
        "interval": {"level": LEVEL, "draws": NUM_DRAWS, "seed": comparison.seed, "method": "paired percentile"},
        "metrics": [
            {
                "metric": found.metric.key,
                "category": None if found.category == ALL else found.category,
                "strategy": found.strategy if found.metric.by_strategy else None,
                **_values(found.difference),
            }
            for found in measured
            if found.metric.by_strategy or found.strategy == comparison.strategies[0]
        ],
        "forgetting": {found.category: _values(found.difference) for found in comparison.forgetting()},
    }
    write_text(folder / METRICS_FILE, json.dumps(metrics, ensure_ascii=False, indent=1) + "\n")
    lines = (json.dumps(row, ensure_ascii=False) for row in _answers(comparison))
    write_text(folder / "answers.jsonl", "".join(line + "\n" for line in lines))


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder in which somebody else's files have the names of a report's; a report itself is replaced.

    Raises:
        ConfigError: Naming the file.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder} is not a folder; give one for the report")
    found = [folder / name for name in REPORT if (folder / name).exists() or (folder / name).is_symlink()]
    if found and not (all(map(files.is_regular, found)) and _is_ours(folder / METRICS_FILE)):
        raise ConfigError(f"{found[0]} was not written by compare, and is left as it is. Give another --output")


def _is_ours(metrics: Path) -> bool:
    try:
        content = json.loads(metrics.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"about", "interval", "metrics", "forgetting"} <= content.keys()


def write_text(file: Path, text: str) -> None:
    """Write one of the files of a report; half of a surrogate pair becomes a question mark.

    Raises:
        ConfigError: If it cannot be written.
    """
    try:
        files.write_text(file, text, errors="replace")
    except OSError as error:
        raise ConfigError(f"--output: {file} cannot be written: {error.strerror}") from None


def _values(found: Difference) -> dict[str, Any]:
    return {**asdict(found), "change": found.change}


def _answers(comparison: Comparison) -> Iterator[dict[str, Any]]:
    for row in comparison.rows:
        values = asdict(row)
        del values["is_safety"]
        yield values


def is_for(metric: Metric, row: Row) -> bool:
    """Whether the metric says anything of these answers."""
    if metric.needs == "safety":
        return row.is_safety
    if metric.needs == "reward":
        return metric.judge in row.before.rewards
    if not metric.by_strategy:
        return row.before.tokens > 0
    return metric.needs != "reference" or bool(row.reference)
