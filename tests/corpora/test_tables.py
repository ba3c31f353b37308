"""Parquet and Arrow files are read as JSON Lines of the same records would be, by every corpus."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import read, said, write_lines

from lit_sft.corpora import _reading
from lit_sft.corpora._reading import find_files, read_records
from lit_sft.corpora.belle import Belle
from lit_sft.corpora.jsonl_chat import JsonlChat
from lit_sft.data.prompts import read_prompts
from lit_sft.errors import DataError

TALKS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": f"问{n}"}, {"role": "assistant", "content": "答", "loss": n > 0}]}
    for n in range(1, 4)
]
RECORDS = [{"instruction": f"问{n}", "input": "", "output": "答"} for n in range(3)]


def as_parquet(file: Path, table: pa.Table) -> None:
    pq.write_table(table, file)


def as_arrow_stream(file: Path, table: pa.Table) -> None:
    with pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)


def as_arrow_file(file: Path, table: pa.Table) -> None:
    with pa.ipc.new_file(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=2)


def texts_of(path: Path) -> list[Any]:
    return [json.loads(raw.data) for file in find_files(str(path)) for raw in read_records(file)]


@pytest.mark.parametrize("write", [as_parquet, as_arrow_stream, as_arrow_file])
def test_rows_are_records_whatever_the_file_is_called(write: Any, tmp_path: Path) -> None:
    write(tmp_path / "table", pa.Table.from_pylist(TALKS))
    conversations, findings = read(JsonlChat(str(tmp_path / "table")))
    as_lines, _ = read(JsonlChat(write_lines(tmp_path / "lines.jsonl", *TALKS)))
    assert [said(conversation) for conversation in conversations] == [said(talk) for talk in as_lines]
    assert [conversation.source for conversation in conversations] == [f"{tmp_path}/table:{row}" for row in (1, 2, 3)]
    assert findings == []


VALUES = st.recursive(
    st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.integers(-(2**60), 2**60)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(value=VALUES)
def test_a_row_says_what_was_written(value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("tables") / "a.parquet"
    try:
        table = pa.Table.from_pylist([{"x": value}])
        as_parquet(file, table)
    except pa.ArrowException:
        return  # a list of texts and numbers is not a column
    (row,) = texts_of(file)
    assert row == {"x": table.to_pylist()[0]["x"]}


def test_a_field_without_a_value_is_left_out_and_not_a_number_stays(tmp_path: Path) -> None:
    as_parquet(tmp_path / "a", pa.Table.from_pylist([{"a": "x", "m": float("nan")}, {"a": None, "m": 1.5}]))
    first, second = texts_of(tmp_path / "a")
    assert first["m"] != first["m"]
    assert second == {"m": 1.5}


def test_what_datasets_keeps_as_json_text_is_decoded_at_any_depth(tmp_path: Path) -> None:
    texts = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"city": "渡口"}', "[1]", None]))
    calls = pa.StructArray.from_arrays([texts], ["arguments"])
    as_parquet(tmp_path / "a", pa.table({"calls": pa.ListArray.from_arrays([0, 1, 3], calls)}))
    assert [row["calls"] for row in texts_of(tmp_path / "a")] == [
        [{"arguments": {"city": "渡口"}}],
        [{"arguments": [1]}, {"arguments": None}],
    ]


@pytest.mark.parametrize(
    ("column", "named"),
    [
        (pa.array([b"x"]), "image \\(binary\\)"),
        (pa.array([1], pa.timestamp("us")), "image \\(timestamp\\[us\\]\\)"),
        (pa.array([[{"bytes": b"x"}]]), "image.bytes \\(binary\\)"),
    ],
)
def test_a_column_that_is_not_json_is_named_with_the_remedy(column: Any, named: str, tmp_path: Path) -> None:
    as_parquet(tmp_path / "a", pa.table({"instruction": ["q"], "output": ["a"], "image": column}))
    with pytest.raises(DataError, match=f"the column {named} of .*remove_columns\\('image'\\)"):
        read(Belle(str(tmp_path / "a")))


def test_a_date_that_says_nothing_of_the_conversation_is_passed_over(tmp_path: Path) -> None:
    created = pa.array([1], pa.timestamp("us"))
    as_parquet(tmp_path / "a", pa.table({"instruction": ["q"], "output": ["a"], "created_at": created}))
    assert len(read(Belle(str(tmp_path / "a")))[0]) == 1


@pytest.mark.parametrize("write", [as_parquet, as_arrow_stream, as_arrow_file])
def test_a_damaged_table_is_one_line_with_the_remedy(write: Any, tmp_path: Path) -> None:
    file = tmp_path / "a"
    write(file, pa.Table.from_pylist(RECORDS))
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"a is damaged \(.*\)\. Download it again") as caught:
        read(Belle(str(file)))
    assert "\n" not in str(caught.value)


def test_a_stream_that_ends_between_two_batches_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "a"
    as_arrow_stream(file, pa.Table.from_pylist(RECORDS))
    file.write_bytes(file.read_bytes().removesuffix(b"\xff\xff\xff\xff" + bytes(4)))
    with pytest.raises(DataError, match="is damaged \\(its stream has no end\\)"):
        read(Belle(str(file)))


def test_a_table_without_rows_is_empty(tmp_path: Path) -> None:
    as_parquet(tmp_path / "a", pa.Table.from_pylist(RECORDS)[:0])
    with pytest.raises(DataError, match="data file is empty"):
        read(Belle(str(tmp_path / "a")))


def test_a_small_table_cannot_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reading, "MIN_BOMB_BYTES", 1000)
    as_parquet(tmp_path / "a", pa.table({"instruction": ["q" * 1000] * 5000, "output": ["a"] * 5000}))
    with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
        read(Belle(str(tmp_path / "a")))


def test_a_dataset_saved_to_disk_is_a_folder_of_shards_in_order(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    saved = datasets.Dataset.from_list(RECORDS)
    saved.save_to_disk(tmp_path / "one", num_shards=2)
    assert [said(talk)[0][1] for talk in read(Belle(str(tmp_path / "one")))[0]] == ["问0", "问1", "问2"]
    datasets.DatasetDict({"test": saved, "train": saved}).save_to_disk(tmp_path / "two")
    with pytest.raises(
        DataError, match=r"several tables: test/data\*.arrow, train/data\*.arrow. Name one: .*/two/train/"
    ):
        find_files(str(tmp_path / "two"))
    assert len(read(Belle(str(tmp_path / "two" / "train")))[0]) == 3


def test_a_folder_of_the_hub_with_one_table_is_its_shards(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README.md").write_text("---", encoding="utf-8")
    for shard in (1, 0):
        as_parquet(tmp_path / "data" / f"train-{shard:05}-of-00002.parquet", pa.Table.from_pylist([RECORDS[shard]]))
    as_parquet(tmp_path / ".cache" / "old.parquet", pa.Table.from_pylist(RECORDS))
    assert [said(talk)[0][1] for talk in read(Belle(str(tmp_path)))[0]] == ["问0", "问1"]
    as_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", pa.Table.from_pylist(RECORDS))
    with pytest.raises(DataError, match=r"Name one: .*/data/train\*\.parquet"):
        find_files(str(tmp_path))
    assert len(find_files(str(tmp_path / "data" / "train*.parquet"))) == 2


def test_a_list_of_prompts_may_be_a_table(tmp_path: Path) -> None:
    as_parquet(tmp_path / "a.parquet", pa.table({"prompt": ["渡船几点开？"], "reference": ["八点。"]}))
    (prompt,) = read_prompts(tmp_path / "a.parquet")
    assert prompt.reference() == "八点。"


@settings(max_examples=100, deadline=None)
@given(
    place=st.integers(8), byte=st.integers(0, 255), write=st.sampled_from([as_parquet, as_arrow_stream, as_arrow_file])
)
def test_a_table_with_a_flipped_byte_is_read_or_named(
    place: int, byte: int, write: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Arrow itself believes what a file says of its lengths, and reads beyond its end."""
    file = tmp_path_factory.mktemp("tables") / "a"
    write(file, pa.Table.from_pylist(TALKS))
    content = bytearray(file.read_bytes())
    content[8 + place % (len(content) - 8)] = byte
    file.write_bytes(content)
    with suppress(DataError):
        assert len(texts_of(file)) <= len(TALKS)


def test_the_demo_corpora_are_found_wherever_a_command_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (found,) = find_files("lit_sft/demo/belle_train.json")
    assert found.is_absolute()
    with pytest.raises(DataError, match=r"data file not found: lit_sft/demo/none\.json"):
        find_files("lit_sft/demo/none.json")
    own = tmp_path / "lit_sft" / "demo" / "belle_train.json"
    own.parent.mkdir(parents=True)
    own.write_text("{}")
    assert find_files("lit_sft/demo/belle_train.json") == [Path("lit_sft/demo/belle_train.json")]
