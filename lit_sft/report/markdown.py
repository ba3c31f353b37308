"""A comparison as Markdown that no answer can break out of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lit_sft.display import as_markdown, num_columns, padded
from lit_sft.report.comparison import Comparison, Measured, Row
from lit_sft.report.scores import scores
from lit_sft.report.wording import doubt, heading, interval, number, verdict

NUM_ANSWERS = 5
"""Answers of each category and strategy; answers.jsonl holds all."""

MAX_CHARACTERS = 160

COLUMNS = ("Before", "After", "Difference", "95% interval", "")


def cell(text: str, limit: int = MAX_CHARACTERS) -> str:
    """Text for a table cell, on one line."""
    cut = text if len(text) <= limit else text[:limit] + "…"
    return as_markdown(cut).strip() or " "


def markdown(comparison: Comparison, measured: Sequence[Measured]) -> str:
    """The whole report, to be read as text too."""
    lines = [f"# {cell(comparison.title)}", ""]
    lines += _list(comparison.about)
    if comparison.training.facts:
        curves = {name: f"{curve[0][1]:.3g} → {curve[-1][1]:.3g}" for name, curve in comparison.training.curves.items()}
        lines += ["## Training", "", *_list(comparison.training.facts | curves)]
    for category in dict.fromkeys(found.category for found in measured):
        for strategy in comparison.strategies:
            chosen = [found for found in measured if (found.category, found.strategy) == (category, strategy)]
            lines += [f"## {cell(heading(category))}: {cell(strategy)}", ""]
            lines += _table(["Metric", *COLUMNS], [_metric(_title(found), found) for found in chosen])
    if forgetting := comparison.forgetting():
        lines += ["## Forgetting", "", "Perplexity of held-out conversations.", ""]
        lines += _table(
            ["Corpus", *COLUMNS, "Conversations"],
            [
                [*_metric(cell(found.category), found)[:-1], _reasoned(found), str(found.difference.num_prompts)]
                for found in forgetting
            ],
        )
    lines += ["## Answers", "", f"The first {NUM_ANSWERS} of each category; `answers.jsonl` holds all.", ""]
    for category in comparison.categories:
        for strategy in comparison.strategies:
            shown = [row for row in comparison.rows if (row.category, row.strategy) == (category, strategy)]
            lines += [f"### {cell(heading(category))}: {cell(strategy)}", ""]
            for place, row in enumerate(shown[:NUM_ANSWERS], start=1):
                lines += _answers(comparison, row, place)
    return "\n".join(lines)


def _answers(comparison: Comparison, row: Row, place: int) -> list[str]:
    """A prompt with its answers as entries of a list."""
    said = {"Before": row.before.text, "After": row.after.text}
    if row.reference:
        said["Reference"] = row.reference
    lines = [f"{place}. {cell(row.prompt)}", "", *(f"    - {name}: {cell(text)}" for name, text in said.items())]
    for score in scores(comparison, row):
        values = " → ".join(number(score.metric, value) for value in (score.before, score.after))
        lines.append(f"    - {cell(score.metric.title)}: {values}")
    return [*lines, ""]


def _list(entries: Mapping[str, str]) -> list[str]:
    return [*(f"- {cell(name)}: {cell(value)}" for name, value in entries.items()), ""]


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


def _reasoned(found: Measured) -> str:
    return f"{verdict(found)}: {doubt(found)}" if doubt(found) else verdict(found)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell, for those who read it as text."""
    cells = [list(headings), *map(list, rows)]
    widths = [max(3, *map(num_columns, column)) for column in zip(*cells, strict=True)]
    head, *body = [_line(map(padded, row, widths)) for row in cells]
    return [head, _line("-" * width for width in widths), *body, ""]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
