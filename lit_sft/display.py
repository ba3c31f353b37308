"""Text that people and models wrote: never obeyed by a terminal or read as Markdown, and in columns that stand."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Collection, Sequence
from functools import cache

CONTROL_PICTURES = 0x2400

STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What can move the cursor, color, answer or reverse what a terminal shows; tabs and new lines stay."""

_SYNTAX = re.compile(
    r"[\\`*{}\[\]<>#|~&$@]"  # anywhere
    r"|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"  # emphasis, which none is within a word
    r"|:(?=//)|(?<=mailto):|(?<=www)\."  # addresses, which some readers turn into links
    r"|^\s*(?:[-+=](?![\w.])|\d+[.)](?=\s|$))"  # a list, a rule, a heading
)
"""What Markdown may read as something else than text."""


def visible(text: str) -> str:
    """Text on one line without control characters, directions and half characters: each as a picture or its number."""
    return "".join(map(_visible, text))


def shortened(text: str, limit: int) -> str:
    """`visible` text, cut after `limit` characters of the original."""
    return visible(text) if len(text) <= limit else visible(text[:limit]) + "…"


def harmless(text: str) -> str:
    """Text with its lines and tabs, without the characters that steer a terminal."""
    return STEERING.sub("", text)


def as_markdown(text: str) -> str:
    """Text on one line that Markdown and HTML show as it is."""
    return _SYNTAX.sub(_as_references, visible(text))


def num_columns(text: str) -> int:
    """Columns of a terminal that a text takes: two for a Chinese character, none for an accent."""
    if text.isascii():
        return len(text)
    return sum(1 + (unicodedata.east_asian_width(char) in "WF") for char in text if not unicodedata.combining(char))


def padded(text: str, width: int, *, is_number: bool = False) -> str:
    """Text filled up with spaces to `width` columns: behind it, or before it for a number."""
    room = " " * (width - num_columns(text))
    return room + text if is_number else text + room


def in_columns(rows: Sequence[Sequence[str]], texts: Collection[int] = (0,)) -> list[str]:
    """Rows as lines; the columns numbered in `texts` stand on the left, the others are numbers."""
    widths = [max(map(num_columns, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            padded(cell, width, is_number=place not in texts)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _as_references(found: re.Match[str]) -> str:
    """As a character reference, a character is text and never syntax."""
    return "".join(char if char.isspace() or char.isalnum() else f"&#{ord(char)};" for char in found.group())


class HarmlessFormatter(logging.Formatter):
    """Formats a message of the log, which may name files and quote data."""

    def format(self, record: logging.LogRecord) -> str:
        """As `logging` does, without what steers a terminal."""
        return harmless(super().format(record))


@cache
def _visible(char: str) -> str:
    if char in "\n\t":
        return "⏎" if char == "\n" else "⇥"
    code = ord(char)
    if code < 0x20:
        return chr(CONTROL_PICTURES + code)
    # Cc, Cf, Cs, Co, Cn; Zl and Zp would break a line.
    if unicodedata.category(char)[0] == "C" or unicodedata.category(char) in {"Zl", "Zp"}:
        return f"\\u{{{code:x}}}"
    return char
