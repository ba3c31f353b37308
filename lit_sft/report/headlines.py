"""A comparison in a few lines, for a terminal from which nobody opens a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lit_sft.display import in_columns, visible
from lit_sft.report.bootstrap import MIN_PROMPTS
from lit_sft.report.comparison import ALL, Comparison, Measured
from lit_sft.report.wording import interval, number, verdict

HEAD = ("before", "after", "95% interval", "")


def headlines(comparison: Comparison, measured: Sequence[Measured]) -> str:
    """Every metric over all prompts, and what was forgotten."""
    blocks: list[tuple[str, list[tuple[str, Measured]]]] = [
        (strategy, [(f.metric.title, f) for f in measured if f.category == ALL and f.strategy == strategy])
        for strategy in comparison.strategies
    ]
    forgetting = [(found.category, found) for found in comparison.forgetting()]
    if forgetting:
        blocks.append(("perplexity of what was held out", forgetting))
    rows = [row for title, entries in blocks for row in _rows(title, entries)]
    lines = in_columns(rows, texts=(0, len(HEAD)))
    if any(not found.difference.is_clear for _, entries in blocks for _, found in entries):
        lines.append(f"unclear: the interval holds zero, or there are fewer than {MIN_PROMPTS} answers to compare")
    return "\n".join(lines)


def _rows(title: str, entries: Sequence[tuple[str, Measured]]) -> Iterator[tuple[str, ...]]:
    yield (visible(title), *HEAD)
    for name, found in entries:
        values = (found.difference.before, found.difference.after)
        yield (
            f"  {visible(name)}",
            *(number(found.metric, value) for value in values),
            interval(found.metric, found.difference),
            verdict(found),
        )
