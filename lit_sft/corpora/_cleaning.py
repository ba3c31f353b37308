"""The bytes of a record become an object of clean texts, or are refused; what was repaired is named."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from lit_sft.corpora._splitting import BYTE_ORDER_MARK, MAX_RECORD_BYTES
from lit_sft.errors import BadRecord

_SUSPICIOUS_ESCAPE = re.compile(rb"\\u(?:00[01]|007|[dD][89a-fA-F])")

_KEY = re.compile(rb'"\s*:')

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")

_DECODER = json.JSONDecoder(strict=False)  # a raw tab in a text is not a reason to lose the record


def decode_record(data: bytes, list_key: str = "") -> tuple[dict[str, Any], list[str]]:
    """The object in these bytes, and the harmless things that were repaired.

    Repairs: `byte-order-mark`; `crlf`; `control-characters`: NUL and its like removed; `lone-surrogates`: halves of
    a character, which no tokenizer can encode, became U+FFFD.

    Args:
        data: One record.
        list_key: The key under which a list is seen as an object; "" to refuse it.

    Raises:
        BadRecord: `record-too-long`, `empty-line`, `not-utf-8`, `broken-json`, `key-twice` or `not-an-object`.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise BadRecord("record-too-long")
    repairs = []
    if data.startswith(BYTE_ORDER_MARK):
        data = data.removeprefix(BYTE_ORDER_MARK)
        repairs.append("byte-order-mark")
    if data.endswith(b"\r"):
        repairs.append("crlf")
    data = data.strip()
    if not data:
        raise BadRecord("empty-line")
    record, is_strict = _decoded(data)
    if len(_KEY.findall(data)) != _num_keys(record):  # more where texts hold JSON, or where a key was dropped
        _refuse_twins(data)
    # A closer look at every text costs more than all the rest, and few records need it: strict JSON holds no control
    # character but DEL as it is.
    if not is_strict or b"\x7f" in data or (b"\\u" in data and _SUSPICIOUS_ESCAPE.search(data)):
        try:
            record, found = _cleaned(record)
        except RecursionError:
            raise BadRecord("broken-json") from None
        repairs += sorted(found)
    if list_key and isinstance(record, list):
        record = {list_key: record}
    if not isinstance(record, dict):
        raise BadRecord("not-an-object")
    return record, repairs


def _decoded(data: bytes) -> tuple[Any, bool]:
    """What stands in these bytes, and whether it is strict JSON."""
    try:
        return orjson.loads(data), True
    except orjson.JSONDecodeError:
        pass  # it is fast and strict; what it refuses may still be readable
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRecord("not-utf-8") from None
    try:
        return _DECODER.decode(text), False
    except (ValueError, RecursionError):
        raise BadRecord("broken-json") from None


def _num_keys(value: Any) -> int:
    """Of all objects in it."""
    count, waiting = 0, [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            count += len(found)
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found
    return count


def _refuse_twins(data: bytes) -> None:
    """What stands twice in an object with another value each time: JSON would keep the last."""
    try:
        json.loads(data.decode("utf-8"), strict=False, object_pairs_hook=_object_of)
    except RecursionError:
        raise BadRecord("broken-json") from None


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and found[key] != value:
            raise BadRecord("key-twice")
        found[key] = value
    return found


def _cleaned(value: Any) -> tuple[Any, set[str]]:
    found: set[str] = set()
    if isinstance(value, str):
        without_control = _CONTROL.sub("", value)
        clean = _SURROGATE.sub("\ufffd", without_control)
        if without_control != value:
            found.add("control-characters")
        if clean != without_control:
            found.add("lone-surrogates")
        return clean, found
    if isinstance(value, list):
        pairs = [_cleaned(item) for item in value]
        return [item for item, _ in pairs], found.union(*(more for _, more in pairs))
    if isinstance(value, dict):
        entries = {key: _cleaned(item) for key, item in value.items()}
        return {key: item for key, (item, _) in entries.items()}, found.union(*(more for _, more in entries.values()))
    return value, found
