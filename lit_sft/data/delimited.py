"""Tables as spreadsheets write them: CSV, TSV or with semicolons, under a header that names the columns."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import orjson

from lit_sft.corpora._splitting import MAX_RECORD_BYTES
from lit_sft.errors import BadRecord

DELIMITERS = (",", "\t", ";")

MAX_HEADER = 2000
"""Characters of a first line that may be one."""

_NAME = re.compile(r"[\w .:-]{0,40}")  # no sentence of a text file, which would have a comma, too
_ROW_NUMBERS = re.compile(r"unnamed: \d+|")
"""How pandas calls the column of row numbers that it writes."""


class Header(NamedTuple):
    """The names of the columns, in lower case, and what stands between them."""

    names: list[str]
    delimiter: str


def header_of(text: str, known: Collection[str]) -> Header | None:
    """The header of a table; None if the first line that is not blank names no known column."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    for delimiter in DELIMITERS if len(first) <= MAX_HEADER else ():
        names = [name.strip().lower() for name in next(csv.reader([first], delimiter=delimiter), [])]
        if not set(names).isdisjoint(known) and all(map(_NAME.fullmatch, names)):
            return Header(names, delimiter)
    return None


def rows_of(text: str, header: Header, lists: Collection[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of the line on which each row begins, and its filled cells by column; rows of blanks are passed over.

    Args:
        text: All of the table.
        header: Its header.
        lists: Columns whose cells may be JSON arrays.

    Raises:
        BadRecord: With the line in its detail, for a quotation mark that is not closed or closed too early, a row with
            more cells than the header has, and two columns of one name.
    """
    twins = sorted({name for name in header.names if name and header.names.count(name) > 1})
    if twins:
        raise BadRecord("broken-table", f"there are two columns {twins[0]!r}")
    csv.field_size_limit(MAX_RECORD_BYTES)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=header.delimiter, strict=True)
    is_header = True
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise BadRecord("broken-table", f"{error}, in the row that begins on line {line}") from None
        if cells is None:
            return
        filled = {name: cell for name, cell in zip(header.names, cells, strict=False) if cell.strip()}
        if is_header or not filled:
            is_header = is_header and not filled
            continue
        if any(cell.strip() for cell in cells[len(header.names) :]):
            raise BadRecord("broken-table", f"line {line} has {len(cells)} cells under {len(header.names)} names")
        named = {name: cell for name, cell in filled.items() if not _ROW_NUMBERS.fullmatch(name)}
        yield line, {name: _list_in(cell) if name in lists else cell for name, cell in named.items()}


def _list_in(cell: str) -> Any:
    """A JSON array, or the text as it is."""
    if not cell.lstrip().startswith("["):
        return cell
    try:
        return orjson.loads(cell)
    except orjson.JSONDecodeError:
        return cell
