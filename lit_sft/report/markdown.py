"""A comparison as Markdown that no answer can break out of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lit_sft.display import as_markdown
from lit_sft.report.comparison import Comparison, Measured, Row
from lit_sft.report.wording import MINUS, heading, interval, number, verdict

NUM_ANSWERS = 5
"""Answers of each category and strategy; answers.jsonl holds all."""

MAX_CHARACTERS = 160

COLUMNS = ("Before", "After", "Difference", "95% interval", "")


def cell(text: str, limit: int = MAX_CHARACTERS) -> str:
    """Text for a table cell, on one line."""
    cut = text if len(text) <= limit else text[:limit] + "…"
    return as_markdown(cut).strip() or " "


def markdown(comparison: Comparison, measured: Sequence[Measured]) -> str:
    """The whole report."""
    lines = [f"# {cell(comparison.title)}", ""]
    lines += _table(["", ""], [[cell(name), cell(value)] for name, value in comparison.about.items()])
    for category in dict.fromkeys(found.category for found in measured):
        for strategy in comparison.strategies:
            chosen = [found for found in measured if (found.category, found.strategy) == (category, strategy)]
            lines += [f"## {cell(heading(category))}: {cell(strategy)}", ""]
            lines += _table(["Metric", *COLUMNS], [_metric(_title(found), found) for found in chosen])
    if forgetting := comparison.forgetting():
        lines += ["## Forgetting", "", "Perplexity of held-out conversations.", ""]
        lines += _table(["Corpus", *COLUMNS], [_metric(cell(found.category), found) for found in forgetting])
    lines += ["## Answers", "", f"The first {NUM_ANSWERS} of each category; `answers.jsonl` holds all.", ""]
    for category in comparison.categories:
        for strategy in comparison.strategies:
            shown = [row for row in comparison.rows if (row.category, row.strategy) == (category, strategy)]
            lines += [f"### {cell(heading(category))}: {cell(strategy)}", ""]
            rows = [
                [cell(row.prompt), cell(row.before.text), cell(row.after.text), cell(row.reference or "")]
                + [_rewards(row, judge) for judge in comparison.judges]
                for row in shown[:NUM_ANSWERS]
            ]
            judges = [cell(f"Reward of {judge}") for judge in comparison.judges]
            lines += _table(["Prompt", "Before", "After", "Reference", *judges], rows)
    return "\n".join(lines)


def _title(found: Measured) -> str:
    """That of a metric of a reward model holds the name of its run."""
    return cell(found.metric.title) if found.metric.judge else found.metric.title


def _metric(title: str, found: Measured) -> list[str]:
    metric, difference = found.metric, found.difference
    return [
        title,
        number(metric, difference.before),
        number(metric, difference.after),
        number(metric, difference.change, is_signed=True),
        interval(metric, difference),
        verdict(found),
    ]


def _rewards(row: Row, judge: str) -> str:
    both = [reply.rewards[judge].score for reply in (row.before, row.after) if judge in reply.rewards]
    return " → ".join(f"{score:.2f}".replace("-", MINUS) for score in both) or " "


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [_line(headings), _line(["---"] * len(headings))]
    return [*lines, *(_line(row) for row in rows), ""]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
