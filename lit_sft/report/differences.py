"""Which characters of two answers differ."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import NamedTuple

WORD = re.compile(r"[A-Za-z0-9]+|\s+|.", re.DOTALL)
"""Latin words and numbers whole, everything else by character."""

MIN_SHARED = 0.3
"""Answers that share less are marked whole: single characters in common say nothing."""


class Span(NamedTuple):
    """A stretch of an answer."""

    text: str
    is_different: bool


def mark(before: str, after: str) -> tuple[list[Span], list[Span]]:
    """Both answers in stretches that the other has, or has not."""
    old, new = WORD.findall(before), WORD.findall(after)
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    if before != after and matcher.ratio() < MIN_SHARED:
        return _whole(before), _whole(after)
    left, right = [], []
    for kind, start, stop, new_start, new_stop in matcher.get_opcodes():
        if stop > start:
            left.append(Span("".join(old[start:stop]), kind != "equal"))
        if new_stop > new_start:
            right.append(Span("".join(new[new_start:new_stop]), kind != "equal"))
    return left, right


def _whole(text: str) -> list[Span]:
    return [Span(text, True)] if text else []
