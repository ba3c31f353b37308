"""A comparison as one page that needs nothing else: no network, no fonts, one script of its own that filters."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, StrictUndefined

from lit_sft.display import visible
from lit_sft.report.comparison import ALL, Comparison, Measured, Row
from lit_sft.report.differences import Span, mark
from lit_sft.report.drawing import draw
from lit_sft.report.scores import Score, gain, scores
from lit_sft.report.wording import doubt, heading, interval, number, shown, verdict

HEADLINE = ("perplexity", "rouge_l", "stopped", "repetition", "refusals")
"""Metrics that the summary shows large, behind what reward models say."""

CHINESE = re.compile("[\u3400-\u9fff\U00020000-\U0003ffff]")
CJK = re.compile("[\u3040-\u30ff\uac00-\ud7af]")


@dataclass(frozen=True)
class Stroke:
    """Before and after on a line from 0 to 100."""

    before: float
    after: float


@dataclass(frozen=True)
class Section:
    """The metrics of a category under a strategy."""

    category: str
    strategy: str
    num_prompts: int
    measured: list[Measured]


@dataclass(frozen=True)
class Card:
    """A prompt with its answers, the differences marked."""

    row: Row
    before: list[Span]
    after: list[Span]
    scores: list[Score]
    gain: float | None


def page(comparison: Comparison, measured: Sequence[Measured]) -> str:
    """The page as HTML; texts are escaped, and show what one cannot see as pictures."""
    folder = resources.files("lit_sft.report")
    script = (folder / "filter.js").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(visible=visible, shown=shown, language=language, heading=heading)
    environment.globals.update(number=number, interval=interval, verdict=verdict, doubt=doubt, stroke=stroke)
    sections = _sections(comparison, measured)
    return environment.from_string((folder / "page.html.jinja").read_text(encoding="utf-8")).render(
        comparison=comparison,
        sections=sections,
        headlines=_headlines(sections[0].measured),
        cards=[_card(comparison, row) for row in comparison.rows],
        drawing=draw(comparison.training.curves),
        forgetting=comparison.forgetting(),
        script=script,
        # The browser then runs this script and no other, whatever stands in the page.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def stroke(found: Measured) -> Stroke:
    """Where before and after stand: a share on its own scale, a score around zero, all else from zero to the larger.

    Perplexity as its logarithm.
    """
    before, after = found.difference.before, found.difference.after
    if found.metric.kind == "score":
        reach = max(abs(before), abs(after), 1e-9)
        return Stroke(*(round(50 + 46 * value / reach, 2) for value in (before, after)))
    if found.metric.kind == "perplexity":
        before, after = math.log(max(before, 1.0)), math.log(max(after, 1.0))
    end = 1.0 if found.metric.kind == "share" else max(before, after, 1e-9)
    # Room for the radius of a dot at both ends.
    return Stroke(*(round(4 + 92 * min(max(value / end, 0.0), 1.0), 2) for value in (before, after)))


def language(text: str) -> str:
    """What a browser needs to choose the right glyphs: `zh-Hans`, or nothing where it is not known."""
    return "zh-Hans" if CHINESE.search(text) and not CJK.search(text) else ""


def _card(comparison: Comparison, row: Row) -> Card:
    found = scores(comparison, row)
    return Card(row, *mark(shown(row.before.text), shown(row.after.text)), found, gain(found))


def _headlines(measured: Sequence[Measured]) -> list[Measured]:
    judged = [found for found in measured if found.metric.judge]
    return [*judged, *(found for key in HEADLINE for found in measured if found.metric.key == key)]


def _sections(comparison: Comparison, measured: Sequence[Measured]) -> list[Section]:
    scopes = dict.fromkeys((found.category, found.strategy) for found in measured)
    return [
        Section(
            category,
            strategy,
            sum(row.strategy == strategy and category in {ALL, row.category} for row in comparison.rows),
            [found for found in measured if (found.category, found.strategy) == (category, strategy)],
        )
        for category, strategy in scopes
    ]
