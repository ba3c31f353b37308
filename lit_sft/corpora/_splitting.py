"""The elements of JSON arrays and objects over several lines, cut out of the bytes of a file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

MAX_RECORD_BYTES = 1 << 20
"""A longer record is none of these corpora (their longest is 15,000 characters) but a broken file."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

MAX_DEPTH = 1000
"""Brackets of a record that are open; about as many as JSON parsers accept."""

MAX_BOUNDARY_BYTES = 1 << 10
"""The end of a record and the beginning of the next, blanks included; may lie across two chunks."""

_TOKEN = re.compile(rb'"(?:[^"\\\n]++|\\[^\n])*+(?:"|(?=\\?\n)|(?P<unfinished>\\?\Z))|[{}\[\],:]')

_BETWEEN_TOKENS = re.compile(rb"\s*+(?:-?[0-9][0-9.eE+-]*+|true|false|null|NaN|-?Infinity)?\s*+")

_TEXT = rb'"(?:[^"\\\n]++|\\[^\n])*+"'

_FIRST_KEY = re.compile(rb"\{\s*+(" + _TEXT + rb")\s*+:")

_BOUNDARY = re.compile(
    rb"\}\s*+(?:\]\s*+,?\s*+(" + _TEXT + rb")\s*+:\s*+\[\s*+)?+,?\s*+(?=\{\s*+(" + _TEXT + rb")\s*+:)"
)
"""`}, {"key":`, perhaps with the end of an array and the key of the next in between."""


class Element(NamedTuple):
    """Bytes of a record, not all where there are more than MAX_RECORD_BYTES; `num_bytes` counts all of them.

    It is 0 where the record is a line: only where brackets could not be matched are other records hidden in one.
    """

    line: int
    data: bytes
    group: str
    num_bytes: int


class Splitter:
    r"""Cuts the elements out of brackets without parsing them.

    Brackets are counted outside of texts, so one lost or stray quotation mark turns texts and structure into each
    other, and all that follows is one record that never ends. Three things limit that. A JSON text cannot hold a raw
    line break, so a text ends with its line. Brackets are matched by kind, and in an object `{` can only follow a
    colon, so any other opens a new record. And where something stands outside of texts that JSON does not have there,
    counting is given up for a search: within a text a quotation mark is written `\"`, so bytes like `}, {"key":`, with
    the first key of the first whole record, can only be the border of two records. The key is needed because the
    objects in a record, the turns of a conversation, have such borders too. The search begins at the start of the
    record, for what is odd may be seen only behind its end.

    Args:
        record_level: In how many brackets a record stands: 0 one object after the other, 1 an array, 2 an object of
            arrays. Objects that follow a closed array or object are records.
    """

    def __init__(self, record_level: int) -> None:
        self._record_level = record_level
        self._level = 0  # brackets of the file that are open
        self._is_closed = False  # whether there were some
        self._open = bytearray()  # brackets of the record that are open
        self._previous = b""
        self._gap = b""  # what stands behind the previous token, if that was in another chunk
        self._group = b'""'
        self._keys: set[bytes] = set()  # the first key of the first whole record
        self._num_keys = 0  # how many of them stand in a record that is an array
        self._is_lost = False  # whether brackets mean nothing any more, and the next record is searched for
        self._record = b""
        self._num_bytes = 0
        self._line = self._first_line = 1
        self._data = b""
        self._position = 0  # up to where the data is taken or passed over

    def split(self, chunks: Iterable[bytes]) -> Iterator[Element]:
        """Every element, in order."""
        for number, chunk in enumerate(chunks):
            self._data, self._position = self._data[self._position :] + chunk, 0
            if not number and self._data.startswith(BYTE_ORDER_MARK):
                # It stands before the first record then, where it is noticed and reported.
                self._record, self._position = BYTE_ORDER_MARK, len(BYTE_ORDER_MARK)
            yield from self._read_data()
        self._pass(len(self._data))
        if self._level and not self._record:
            self._record, self._first_line = b"<end of file>", self._line
        yield from self._end()

    def _read_data(self) -> Iterator[Element]:
        """All that is there, but a text or border that ends in the next chunk."""
        while True:
            if self._is_lost:
                yield from self._search()
            if self._is_lost:
                return
            behind = self._position
            for token in _TOKEN.finditer(self._data, self._position):
                gap, self._gap = self._gap + self._data[behind : token.start()], b""
                behind = token.end()
                if token["unfinished"] is not None:
                    self._gap = gap[:MAX_BOUNDARY_BYTES]
                    self._wait(token[0], token.start(), token["unfinished"])
                    return
                if self._level == self._record_level and gap and not gap.isspace() and not _is_value(gap):
                    self._is_lost = True
                else:
                    yield from self._read(token[0], token.start(), token.end())
                if self._is_lost:
                    self._begin_search()
                    break
            else:
                self._gap = (self._gap + self._data[behind:])[:MAX_BOUNDARY_BYTES]
                self._pass(len(self._data))
                return

    def _read(self, token: bytes, start: int, end: int) -> Iterator[Element]:
        mark = token[:1]
        if self._record_level and not self._level and self._is_closed and mark == b"{":
            self._skip(start)
            self._record_level, self._group = 0, b'""'
        if self._level < self._record_level:
            if mark == b'"':
                self._group = token
            elif mark in b"[{":
                self._level += 1
            elif mark == b"}" and self._record_level == 1 and self._is_closed:
                # No array ends so: the bracket before was one within a record, which a stray one had torn apart.
                self._skip(start)
                self._level, self._is_lost = 1, True
                return
            elif mark in b"]}":
                self._close()
            self._skip(end)
        elif mark in b"{[":
            if mark == b"{" and self._previous != b":" and self._open.endswith(b"{"):
                self._take(start)
                yield from self._end()
            self._open += mark
            self._is_lost = len(self._open) > MAX_DEPTH
        elif mark in b"}]" and self._open:
            position = self._open.rfind(b"{" if mark == b"}" else b"[")
            if position >= 0:
                del self._open[position:]
            if not self._open:
                self._take(end)
                yield from self._end()
        elif (mark == b"," or (mark == b"]" and self._level)) and not self._open:
            self._take(start)
            yield from self._end()
            self._skip(end)
            if mark == b"]":
                self._close()
        elif self._previous == b"{" and self._open == b"[{" and token in self._keys:
            # Records in a bracket of their own: it is a stray one, and each of them is a record.
            self._num_keys += 1
            self._is_lost = self._num_keys > 1
        self._previous = mark

    def _close(self) -> None:
        self._level = max(self._level - 1, 0)
        self._is_closed = self._is_closed or not self._level

    def _begin_search(self) -> None:
        """Go back to the beginning of the record, if its bytes are still there."""
        if self._record and self._num_bytes == len(self._record):
            self._data, self._position = self._record + self._data[self._position :], 0
            self._record, self._num_bytes, self._line = b"", 0, self._first_line

    def _search(self) -> Iterator[Element]:
        """Go on where the next record begins; if that is not in the data, wait for more."""
        own = _FIRST_KEY.match(self._data[self._position :].lstrip()) if not self._record else None
        keys = self._keys or ({own[1]} if own else set())
        for border in _BOUNDARY.finditer(self._data, self._position):
            if border[2] in keys:
                self._take(border.start() + 1)
                yield from self._end()
                self._skip(border.end())
                self._group = border[1] or self._group
                self._previous, self._gap = b",", b""
                return
        self._keys = keys
        self._take(max(self._position, len(self._data) - MAX_BOUNDARY_BYTES))

    def _wait(self, text: bytes, start: int, escape: bytes) -> None:
        """Leave a text that is not at its end for the next chunk, unless it is too long to be any."""
        self._pass(start)
        if len(text) > MAX_RECORD_BYTES:
            self._pass(len(self._data))
            self._data, self._position = b'"' + escape, 0

    def _pass(self, end: int) -> None:
        if self._level == self._record_level:
            self._take(end)
        else:
            self._skip(end)

    def _take(self, end: int) -> None:
        piece = self._data[self._position : end]
        if not self._record or self._record == BYTE_ORDER_MARK:
            begun = piece.lstrip()
            self._line += piece[: len(piece) - len(begun)].count(b"\n")
            self._first_line, piece = self._line, begun
        if len(self._record) <= MAX_RECORD_BYTES:
            self._record += piece
        self._num_bytes += len(piece)
        self._line += piece.count(b"\n")
        self._position = end

    def _skip(self, end: int) -> None:
        self._line += self._data.count(b"\n", self._position, end)
        self._position = end

    def _end(self) -> Iterator[Element]:
        record, self._record = self._record.rstrip(), b""
        num_bytes, self._num_bytes = max(self._num_bytes, len(record)), 0
        if not (self._keys or self._is_lost or self._open) and (key := _FIRST_KEY.match(record)):
            self._keys.add(key[1])
        self._open.clear()
        self._num_keys, self._is_lost = 0, False
        if record and record != BYTE_ORDER_MARK:
            yield Element(self._first_line, record, _text(self._group), num_bytes)


def _is_value(between: bytes) -> bool:
    return _BETWEEN_TOKENS.fullmatch(between) is not None


def _text(token: bytes) -> str:
    try:
        text = str(json.loads(token))
    except ValueError:
        text = token.decode("utf-8", errors="replace").strip('"')
    return text.encode("utf-8", "replace").decode()
