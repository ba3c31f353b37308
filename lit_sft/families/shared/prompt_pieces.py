"""Words in which a prompt format describes itself as data; what they mean stands in `export/prompt_data.py`."""

from __future__ import annotations

from typing import Any

Piece = dict[str, Any]


def token(index: int) -> Piece:
    """A token by its id."""
    return {"id": int(index)}


def text(template: str) -> Piece:
    """A text that is encoded on its own; `{content}` and the like are filled in."""
    return {"text": template}


def joined(*pieces: Piece) -> Piece:
    """Texts and tokens that are encoded in one go: a token may swallow blanks of the texts beside it."""
    return {"joined": list(pieces)}


def literal(written: str) -> str:
    """A text in which nothing is filled in."""
    return written.replace("{", "{{").replace("}", "}}")
