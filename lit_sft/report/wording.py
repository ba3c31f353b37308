"""How page and Markdown write numbers and texts."""

from __future__ import annotations

from lit_sft.display import visible
from lit_sft.report.bootstrap import MIN_PROMPTS, Difference
from lit_sft.report.comparison import Measured
from lit_sft.report.metrics import Metric

MINUS = "−"


def number(metric: Metric, value: float, *, is_signed: bool = False) -> str:
    """A value as the metric is read: shares in percent."""
    if metric.kind == "share":
        text = f"{abs(value):.1%}"
    elif abs(value) >= 1000:
        text = f"{abs(value):,.0f}"
    else:
        text = f"{abs(value):.2f}" if metric.kind in {"perplexity", "score"} else f"{abs(value):.1f}"
    has_weight = any(digit in "123456789" for digit in text)
    sign = MINUS if value < 0 and has_weight else "+" if is_signed and has_weight else ""
    return sign + text


def interval(metric: Metric, difference: Difference) -> str:
    """The bounds of a difference; nothing where there are none."""
    if difference.low is None or difference.high is None:
        return ""
    return f"[{number(metric, difference.low, is_signed=True)}, {number(metric, difference.high, is_signed=True)}]"


def verdict(found: Measured) -> str:
    """`better`, `worse`, `changed`, or `unclear` where the interval holds zero."""
    if not found.difference.is_clear:
        return "unclear"
    if not found.metric.better:
        return "changed"
    is_higher = found.difference.change > 0
    return "better" if is_higher == (found.metric.better == "higher") else "worse"


def doubt(found: Measured) -> str:
    """Why nothing is clear; nothing where it is."""
    difference = found.difference
    if difference.is_clear:
        return ""
    if difference.num_prompts < MIN_PROMPTS:
        return f"only {difference.num_prompts}; fewer than {MIN_PROMPTS} say nothing"
    return "the interval holds zero"


def heading(category: str) -> str:
    """A category as a reader says it: Crimes_And_Illegal_Activities -> Crimes and illegal activities."""
    words = category.split("_")
    return " ".join([words[0], *map(str.lower, words[1:])]) if len(words) > 1 else category


def shown(text: str) -> str:
    """Text with its lines, but without any other character that one cannot see."""
    return "\n".join(visible(line) for line in text.replace("\r\n", "\n").split("\n"))
