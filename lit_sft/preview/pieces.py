"""Tokens as text that one can look at: control tokens by name, characters whole, nothing that steers a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from lit_sft.conversation import IGNORE_INDEX

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers write for bytes that are not a character."""

MAX_TOKENS_OF_A_CHARACTER = 4

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""How sentencepiece calls a byte of a character that it has no piece for."""

BRACKETED = re.compile(r"<\S+>|\[\S+\]")


@dataclass(frozen=True)
class Piece:
    """A token, or the few that only together make a character.

    `ids` and `labels` [n] are those of the tokens; `text` is what they stand for together, or the name of a control
    token.
    """

    ids: list[int]
    labels: list[int]
    text: str
    is_control: bool

    @property
    def is_supervised(self) -> bool:
        """Whether it carries loss."""
        return self.labels[0] != IGNORE_INDEX


class PieceReader:
    """Reads the tokens of one tokenizer.

    Args:
        tokenizer: The family's tokenizer, with `encode_text`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        # Behind other text, no tokenizer drops a blank at the beginning.
        self._anchor: list[int] = tokenizer.encode_text("a")
        self._anchor_text = self._decode(self._anchor)
        self._is_control = cache(self._find_control)

    def read(self, input_ids: Sequence[int], labels: Sequence[int]) -> list[Piece]:
        """An example [T] as pieces, none of which is supervised in part."""
        pieces: list[Piece] = []
        start = 0
        while start < len(input_ids):
            stop = self._end_of_character(input_ids, labels, start)
            ids = [int(token) for token in input_ids[start:stop]]
            is_control = self._is_control(ids[0])
            text = self._name(ids[0]) if is_control else self.text(ids)
            if BROKEN in text and BYTE.fullmatch(self._name(ids[0])):
                text = self._name(ids[0])
            pieces.append(Piece(ids, [int(label) for label in labels[start:stop]], text, is_control))
            start = stop
        return pieces

    def text(self, ids: Sequence[int]) -> str:
        """What ordinary tokens stand for in the middle of a text."""
        return self._decode([*self._anchor, *ids]).removeprefix(self._anchor_text)

    def _end_of_character(self, ids: Sequence[int], labels: Sequence[int], start: int) -> int:
        """Where the token at `start` and those that complete its last character end."""
        if self._is_control(int(ids[start])):
            return start + 1
        is_supervised = labels[start] != IGNORE_INDEX
        for stop in range(start + 1, min(start + MAX_TOKENS_OF_A_CHARACTER, len(ids)) + 1):
            if not self.text([int(token) for token in ids[start:stop]]).endswith(BROKEN):
                return stop
            if stop == len(ids) or (labels[stop] != IGNORE_INDEX) != is_supervised or self._is_control(int(ids[stop])):
                break
        return start + 1

    def _find_control(self, token: int) -> bool:
        """Whether no text becomes this token."""
        if token in self._special:
            return True
        text = self.text([token])
        if not text:
            return True
        is_named = text == self._name(token) and BRACKETED.fullmatch(text) is not None
        return is_named and token not in self._tokenizer.encode_text(text)

    def _name(self, token: int) -> str:
        try:
            name = self._tokenizer.convert_ids_to_tokens(token)
        except (IndexError, ValueError, KeyError):
            name = None
        # Embeddings have rows beyond the vocabulary.
        return f"<{token}>" if name is None else str(name)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
