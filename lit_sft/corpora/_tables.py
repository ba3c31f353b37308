"""Parquet and Arrow files, as `hf download` and `save_to_disk` give them: each row as the bytes of a JSON object.

From there a row is a record like any other; the index copies it into the cache once, with all others.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_sft.corpora._fields import SAYS_NOTHING
from lit_sft.errors import DataError

PARQUET, ARROW_FILE, ARROW_STREAM = TABLES = (b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")

END_OF_STREAM = ARROW_STREAM + bytes(4)

ROWS = 1024
"""Rows in memory at once."""

_SHARD = re.compile(r"-?[0-9]+(-of-[0-9]+)?$")


def rows_of(file: Path) -> Iterator[bytes]:
    """The rows of a Parquet or Arrow file, in order.

    A field without a value is left out: a table cannot say whether it was null or not there.

    Raises:
        DataError: If the file is damaged, or a column is not JSON (dates, bytes), unless its name tells that it says
            nothing of the conversation.
    """
    import pyarrow  # two tenths of a second that most corpora need not wait for

    try:
        with file.open("rb") as stream:
            schema, batches = _opened(stream)
            columns = _columns(file, schema)
            with_json = [field for field in columns if "arrow.json" in str(field.type)]
            for batch in batches:
                batch.validate(full=True)  # a damaged one would be read beyond its end
                for row in batch.select([field.name for field in columns]).to_pylist():
                    row |= {field.name: _value(row[field.name], field.type) for field in with_json}
                    filled = {name: value for name, value in row.items() if value is not None}
                    yield json.dumps(filled, ensure_ascii=False).encode()
    except (pyarrow.ArrowException, OSError, ValueError, LookupError) as error:
        raise DataError(f"{file} is damaged ({' '.join(str(error).split())[:200]}). Download it again") from None


def tables_in(folder: Path) -> list[Path]:
    """The tables of a dataset in a folder, in order; none if there are none.

    Raises:
        DataError: If there are several splits or subsets, naming what to write in its place.
    """
    # FOLDER/*, data/* or train/*, SUBSET/train/*: no search of a whole disk.
    patterns = (f"{'*/' * depth}*.{suffix}" for depth in range(3) for suffix in ("parquet", "arrow"))
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    shards = [file.relative_to(folder).with_name(f"{_SHARD.sub('', file.stem)}*{file.suffix}") for file in files]
    tables = list(dict.fromkeys(map(str, shards)))
    if len(tables) > 1:
        wanted = next((table for table in tables if "train" in table), tables[0])
        raise DataError(f"{folder} holds several tables: {', '.join(tables)}. Name one: {folder / wanted}")
    return files


def _opened(stream: Any) -> tuple[Any, Iterator[Any]]:
    """The schema of a table and its rows, some at a time."""
    import pyarrow
    import pyarrow.parquet

    magic = stream.read(len(ARROW_FILE))
    stream.seek(0)
    if magic.startswith(PARQUET):
        parquet = pyarrow.parquet.ParquetFile(stream)
        # Threads of its own would not survive the forks of the workers.
        return parquet.schema_arrow, parquet.iter_batches(ROWS, use_threads=False)
    if magic.startswith(ARROW_FILE):
        opened = pyarrow.ipc.open_file(stream)
        return opened.schema, map(opened.get_batch, range(opened.num_record_batches))
    stream.seek(-len(END_OF_STREAM), os.SEEK_END)
    if stream.read() != END_OF_STREAM:  # else what is cut off between two batches would not be missed
        raise ValueError("its stream has no end")
    stream.seek(0)
    opened = pyarrow.ipc.open_stream(stream)
    return opened.schema, iter(opened)


def _columns(file: Path, schema: Any) -> list[Any]:
    """The columns that JSON can hold."""
    columns = []
    for field in schema:
        other = _not_json(field.name, field.type)
        if not other:
            columns.append(field)
        elif field.name not in SAYS_NOTHING:
            raise DataError(
                f"the column {other} of {file} is neither text nor number nor a list of them. Take it out: "
                f"datasets.Dataset.remove_columns({field.name!r})"
            )
    return columns


def _not_json(name: str, kind: Any) -> str:
    """Name and type of the first part of a column that is not JSON, "" if there is none."""
    from pyarrow import types

    if types.is_struct(kind):
        return next(filter(None, (_not_json(f"{name}.{field.name}", field.type) for field in kind)), "")
    if _is_list(kind) or types.is_dictionary(kind):
        return _not_json(name, kind.value_type)
    texts = (types.is_string, types.is_large_string, types.is_string_view, _is_json_text)
    numbers = (types.is_boolean, types.is_integer, types.is_floating, types.is_null)
    return "" if any(is_such(kind) for is_such in (*texts, *numbers)) else f"{name} ({kind})"


def _value(value: Any, kind: Any) -> Any:
    """A value of a column, with what `datasets` keeps as JSON text decoded."""
    from pyarrow import types

    if value is None:
        return None
    if _is_json_text(kind):
        return json.loads(value)
    if _is_list(kind):
        return [_value(item, kind.value_type) for item in value]
    if types.is_struct(kind):
        return {field.name: _value(value[field.name], field.type) for field in kind}
    return value


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_json_text(kind: Any) -> bool:
    import pyarrow

    return isinstance(kind, pyarrow.JsonType)
