"""The curves of a run as lines within a page, without a script or a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lit_sft.report.training import Curve

WIDTH, HEIGHT = 600, 160


@dataclass(frozen=True)
class Line:
    """`points` as SVG has them; `first` and `last` value."""

    name: str
    points: str
    first: float
    last: float


@dataclass(frozen=True)
class Drawing:
    """Lines over a common scale: steps from 0 to `last_step`, values from `low` to `high`."""

    lines: list[Line]
    low: float
    high: float
    last_step: int
    width: int = WIDTH
    height: int = HEIGHT


def draw(curves: Mapping[str, Curve]) -> Drawing | None:
    """None where there is nothing to draw."""
    finite = {name: [point for point in curve if math.isfinite(point[1])] for name, curve in curves.items()}
    finite = {name: curve for name, curve in finite.items() if curve}
    if not finite:
        return None
    values = [value for curve in finite.values() for _, value in curve]
    low, high, last = min(values), max(values), max(step for curve in finite.values() for step, _ in curve)
    reach = (high - low) or 1.0

    def place(step: int, value: float) -> str:
        return f"{WIDTH * step / max(last, 1):.1f},{HEIGHT * (high - value) / reach:.1f}"

    lines = [
        Line(name, " ".join(place(*point) for point in curve), curve[0][1], curve[-1][1])
        for name, curve in finite.items()
    ]
    return Drawing(lines, low, high, last)
