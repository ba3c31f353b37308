"""Several runs as a table for the terminal. Loads no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lit_sft.display import visible

HEADINGS = ("run", "state", "step", "held out", "stage", "tuning", "family", "size")
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
    cells = [HEADINGS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def _cells(row: Row) -> tuple[str, ...]:
    step = "-" if row.step is None else f"{row.step:,}"
    size = _size(row.num_bytes)
    return visible(row.name), row.state, step, _measured(row), row.stage, row.tuning, row.family, size


def _measured(row: Row) -> str:
    numbers = [f"{value:.4g}" for value in (row.before, row.after) if value is not None]
    return f"{row.metric} {' -> '.join(numbers)}" if numbers else "-"


def _size(num_bytes: float) -> str:
    power = min(len(UNITS) - 1, max(0, math.floor(math.log10(max(num_bytes, 1))) // 3))
    return f"{num_bytes / 1000**power:.3g} {UNITS[power]}"
