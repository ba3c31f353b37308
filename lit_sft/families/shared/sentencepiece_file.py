"""The file of a sentencepiece model, read and extended as the bytes that it is.

The module that sentencepiece generates for this works with few releases of protobuf, and other packages choose the
release. The numbers of the fields are those of `sentencepiece_model.proto`, their writing is that of
https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import sentencepiece

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
"""Kinds of pieces."""

PIECES, TRAINER, NORMALIZER = 1, 2, 3
"""Fields of a model."""
TEXT, SCORE, KIND = 1, 2, 3
"""Fields of a piece."""
ADD_DUMMY_PREFIX, REMOVE_EXTRA_BLANKS = 3, 4
"""Of the normalizer."""
BYTE_FALLBACK = 35
"""Of the trainer."""

NUMBER, SIZED, FOUR_BYTES = 0, 2, 5
"""How a field is written."""
SIZES = {1: 8, FOUR_BYTES: 4}
"""Bytes of fields of one size."""


class Piece(NamedTuple):
    """A piece of the vocabulary."""

    text: str
    kind: int = NORMAL
    score: float = 0.0


class Model(NamedTuple):
    """What a tokenizer has to know of a model. `pieces` stand in the order of their ids."""

    pieces: list[Piece]
    has_dummy_prefix: bool
    removes_extra_blanks: bool


def read_model(serialized: bytes) -> Model:
    """Read the pieces of a model and how it begins a text.

    Raises:
        ValueError: If these are not the bytes of a model.
    """
    pieces, has_dummy_prefix, removes_extra_blanks = [], True, True
    for field, value in _fields(serialized):
        if field == PIECES:
            pieces.append(_piece(value))
        elif field == NORMALIZER:
            normalizer = dict(_fields(value))
            has_dummy_prefix = bool(normalizer.get(ADD_DUMMY_PREFIX, has_dummy_prefix))
            removes_extra_blanks = bool(normalizer.get(REMOVE_EXTRA_BLANKS, removes_extra_blanks))
    return Model(pieces, has_dummy_prefix, removes_extra_blanks)


def open_processor(serialized: bytes) -> sentencepiece.SentencePieceProcessor:
    """The library's own reader of a model, from the bytes of its file: given a folder, or none, it ends the process.

    Raises:
        RuntimeError: If these are not the bytes of a model.
    """
    if not serialized:
        raise RuntimeError("the file is empty")
    return sentencepiece.SentencePieceProcessor(model_proto=serialized)


def extended_model(serialized: bytes, pieces: Sequence[Piece]) -> bytes:
    """The model with more pieces behind its own, and with byte fallback: what is appended to a message joins it."""
    added = [
        _sized(TEXT, piece.text.encode())
        + _tag(SCORE, FOUR_BYTES)
        + struct.pack("<f", piece.score)
        + _tag(KIND, NUMBER)
        + _number(piece.kind)
        for piece in pieces
    ]
    fallback = _sized(TRAINER, _tag(BYTE_FALLBACK, NUMBER) + _number(1))
    return serialized + b"".join(_sized(PIECES, piece) for piece in added) + fallback


def with_controls(serialized: bytes, controls: Collection[int]) -> bytes:
    """The model with the pieces of these numbers as control pieces, which no text produces.

    Raises:
        ValueError: If these are not the bytes of a model.
    """
    as_control = _tag(KIND, NUMBER) + _number(CONTROL)
    written, index = bytearray(), 0
    for field, value in _fields(serialized):
        if not isinstance(value, bytes):
            raise ValueError("not a whole sentencepiece model")
        if field == PIECES:
            # Of a field that stands twice the last counts.
            value += as_control * (index in controls)
            index += 1
        written += _sized(field, value)
    return bytes(written)


def _piece(message: bytes) -> Piece:
    # As sentencepiece writes them, a short text, a score and perhaps a kind: there are a hundred thousand.
    tail = message[2 + message[1] :] if message[:1] == _TEXT_TAG and len(message) > 1 else b""
    if tail[:1] == _SCORE_TAG and (len(tail) == 5 or (len(tail) == 7 and tail[5:6] == _KIND_TAG)):
        return Piece(message[2 : -len(tail)].decode(), tail[6] if tail[6:] else NORMAL, *_score(tail, 1))
    values = dict(_fields(message))
    return Piece(values.get(TEXT, b"").decode(), values.get(KIND, NORMAL), *_score(values.get(SCORE, bytes(4))))


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: an int where it is written as one, else bytes."""
    position, end = 0, len(message)
    try:
        while position < end:
            tag, position = _read_number(message, position)
            form = tag & 7
            if form == NUMBER:
                number, position = _read_number(message, position)
                yield tag >> 3, number
                continue
            if form == SIZED:
                size, position = _read_number(message, position)
            else:
                size = SIZES[form]
            value, position = message[position : position + size], position + size
            if len(value) < size:
                raise IndexError
            yield tag >> 3, value
    except (IndexError, KeyError):
        raise ValueError("not a whole sentencepiece model") from None


def _read_number(message: bytes, position: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and where the next value begins."""
    byte = message[position]
    if byte < 128:
        return byte, position + 1
    number, shift = byte & 127, 7
    while byte > 127:
        position += 1
        byte = message[position]
        number |= (byte & 127) << shift
        shift += 7
    return number, position + 1


def _number(value: int) -> bytes:
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    return bytes([*written, value])


def _tag(field: int, form: int) -> bytes:
    return _number(field << 3 | form)


def _sized(field: int, content: bytes) -> bytes:
    return _tag(field, SIZED) + _number(len(content)) + content


_TEXT_TAG, _SCORE_TAG, _KIND_TAG = _tag(TEXT, SIZED), _tag(SCORE, FOUR_BYTES), _tag(KIND, NUMBER)
_score = struct.Struct("<f").unpack_from
