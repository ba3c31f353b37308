"""Several runs as a table for the terminal. Loads no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lit_sft.display import in_columns, visible

HEADINGS = ("run", "state", "step", "held out", "stage", "tuning", "family", "size")
TEXTS = tuple(place for place, name in enumerate(HEADINGS) if name not in {"step", "size"})
UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Row:
    """What the table says of a run; None for what it has not measured.

    Args:
        name: Of its folder.
        state: running, finished, ended early, stopped (a checkpoint to resume from), failed, or damaged.
        step: Optimizer steps made.
        metric: What was held out for.
        before: The metric at the first validation.
        after: The metric at the last one.
        stage: Class of the stage.
        tuning: Class of the tuning.
        family: Of the model.
        num_bytes: Of all files.
    """

    name: str
    state: str
    step: int | None = None
    metric: str = ""
    before: float | None = None
    after: float | None = None
    stage: str = "-"
    tuning: str = "-"
    family: str = "-"
    num_bytes: int = 0


def render(rows: list[Row]) -> str:
    """The table, a line for each run."""
    return "\n".join(in_columns([HEADINGS, *map(_cells, rows)], TEXTS))


def _cells(row: Row) -> tuple[str, ...]:
    step = "-" if row.step is None else f"{row.step:,}"
    size = _size(row.num_bytes)
    return visible(row.name), row.state, step, _measured(row), row.stage, row.tuning, row.family, size


def _measured(row: Row) -> str:
    if row.before is None and row.after is None:
        return "-"
    numbers = ("-" if value is None else f"{value:.4g}" for value in (row.before, row.after))
    return f"{row.metric} {' -> '.join(numbers)}"


def _size(num_bytes: float) -> str:
    power = min(len(UNITS) - 1, max(0, math.floor(math.log10(max(num_bytes, 1))) // 3))
    return f"{num_bytes / 1000**power:.3g} {UNITS[power]}"
