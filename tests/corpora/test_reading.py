"""A file is read by its content, whatever its container, suffix and dirt."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from reading import read, said, write_lines

from lit_sft.corpora._splitting import MAX_RECORD_BYTES
from lit_sft.corpora.belle import Belle
from lit_sft.errors import DataError

RECORDS = [{"instruction": f"问{i}，[{{", "input": "", "output": f'答"{i}"\n}}]'} for i in range(1, 4)]
EXPECTED = [[("user", f"问{i}，[{{"), ("assistant", f'答"{i}"\n}}]')] for i in range(1, 4)]

LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)
ARRAY = json.dumps(RECORDS, ensure_ascii=False)
PRETTY_ARRAY = json.dumps(RECORDS, ensure_ascii=False, indent=2)


@pytest.mark.parametrize(
    ("text", "places"),
    [
        (LINES, ["1", "2", "3"]),
        (LINES.rstrip(), ["1", "2", "3"]),
        (ARRAY, ["1", "1#2", "1#3"]),
        (PRETTY_ARRAY, ["2", "7", "12"]),
        ("\n\n" + PRETTY_ARRAY + "\n", ["4", "9", "14"]),
        ("\n".join(json.dumps(record, indent=1) for record in RECORDS), ["1", "6", "11"]),
    ],
)
@pytest.mark.parametrize(
    "compress", [bytes, gzip.compress, zstandard.compress, lambda data: 2 * gzip.compress(b"") + gzip.compress(data)]
)
def test_every_container_holds_the_same_records(tmp_path: Path, text: str, places: list[str], compress) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "data.txt"
    file.write_bytes(compress(text.encode()))
    conversations, findings = read(Belle(str(file)))
    assert [said(conversation) for conversation in conversations] == EXPECTED
    assert [conversation.source for conversation in conversations] == [f"{file}:{place}" for place in places]
    assert not findings


def test_a_path_may_be_a_glob_or_a_list(tmp_path: Path) -> None:
    for name, record in zip("bac", RECORDS, strict=True):
        write_lines(tmp_path / f"{name}.jsonl", record)
    by_glob = read(Belle(str(tmp_path / "*.jsonl")))[0]
    assert [Path(conversation.source).name for conversation in by_glob] == ["a.jsonl:1", "b.jsonl:1", "c.jsonl:1"]
    by_list = read(Belle([str(tmp_path / "c.jsonl"), str(tmp_path / "[ab].jsonl")]))[0]
    assert [Path(conversation.source).name for conversation in by_list] == ["c.jsonl:1", "a.jsonl:1", "b.jsonl:1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "data file not found"),
        (b"", "is empty"),
        (gzip.compress(b""), "is empty"),
        (gzip.compress(LINES.encode())[:-12], "is cut off.*Download it again"),
        (zstandard.compress(LINES.encode())[:-3], "is cut off.*Download it again"),
        (gzip.compress(LINES.encode())[:20] + b"x" * 50, "is damaged.*Download it again"),
        (b"PK\x03\x04" + bytes(20), "is a zip archive. Unpack it"),
    ],
    # Not the bytes: a gzip file holds the time, and then each process would collect other tests.
    ids=["missing", "empty", "empty-gzip", "cut-gzip", "cut-zstd", "damaged-gzip", "zip"],
)
def test_a_file_that_cannot_be_read_is_an_error_that_says_what_to_do(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "data.gz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(Belle(str(file)))


def test_a_folder_is_refused_with_the_glob_to_write(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder.*\*.jsonl"):
        read(Belle(str(tmp_path)))


def pretty(*elements: str) -> str:
    return "[\n" + ",\n".join(elements) + "\n]\n"


GOOD = json.dumps({"instruction": "q", "input": "", "output": "a"})


@pytest.mark.parametrize(
    ("text", "places", "findings"),
    [
        (pretty(GOOD, '{"instruction": }', GOOD), ["2", "4"], [("3", "broken-json")]),
        (pretty(GOOD, '{"instruction": "q, "output": "a"}', GOOD), ["2", "4"], [("3", "broken-json")]),
        (pretty(GOOD, '{"instruction": "q"', GOOD), ["2", "4"], [("3", "broken-json")]),
        (pretty(GOOD, '{"instruction": ["q"}', GOOD), ["2", "4"], [("3", "broken-json")]),
        (pretty(GOOD, '{"instruction": "q"]}', GOOD), ["2", "4"], [("3", "broken-json")]),
        (pretty(GOOD, '{"instruction": "q"}}', GOOD), ["2", "4"], [("3", "no-answer"), ("3#2", "broken-json")]),
        (
            pretty(GOOD, "3", '"text"', "[1, 2]", "null", GOOD),
            ["2", "7"],
            [(str(n), "not-an-object") for n in range(3, 7)],
        ),
        (pretty(GOOD + "\n" + GOOD), ["2", "3"], []),
        ("[" + GOOD + ",\n" + GOOD[:-5], ["1"], [("2", "broken-json")]),
        ("[" + GOOD + ",\n" + GOOD, ["1", "2"], [("2#2", "broken-json")]),
        ("\ufeff" + pretty(GOOD), ["2"], [("2", "byte-order-mark")]),
        (pretty(GOOD).replace("\n", "\r\n"), ["2"], []),
    ],
)
def test_a_broken_element_of_an_array_costs_itself_only(
    tmp_path: Path, text: str, places: list[str], findings: list[tuple[str, str]]
) -> None:
    file = tmp_path / "belle.json"
    file.write_bytes(text.encode())
    conversations, found = read(Belle(str(file)))
    assert [conversation.source for conversation in conversations] == [f"{file}:{place}" for place in places]
    assert found == findings


@pytest.mark.parametrize(
    ("output", "kept", "reason"),
    [
        (r"a\u0000b\u0007c\td", "abc\td", "control-characters"),
        ("a\x00b\x7fc\td", "abc\td", "control-characters"),
        (r"a\ud83db", "a\ufffdb", "lone-surrogates"),
        (r"a\ude00", "a\ufffd", "lone-surrogates"),
        (r"\ud83d\ude00", "😀", None),
        ("a\u2028b\u0085c\u00a0d", "a\u2028b\u0085c\u00a0d", None),
    ],
)
def test_characters_that_no_text_has_are_repaired(tmp_path: Path, output: str, kept: str, reason: str | None) -> None:
    file = tmp_path / "belle.json"
    file.write_text(f'{{"instruction": "q", "input": "", "output": "{output}"}}\n', encoding="utf-8")
    conversations, findings = read(Belle(str(file)))
    assert conversations[0].messages[1].content == kept
    assert findings == ([("1", reason)] if reason else [])


def test_a_text_of_nothing_but_control_characters_is_not_an_answer(tmp_path: Path) -> None:
    file = tmp_path / "belle.json"
    file.write_text(GOOD + "\n" + r'{"instruction": "q", "input": "", "output": "\u0000\n"}')
    assert read(Belle(str(file)))[1] == [("2", "no-answer")]


@pytest.mark.slow
@pytest.mark.parametrize("separator", ["\n", ",\n"])
def test_an_over_long_record_is_passed_over_in_constant_memory(tmp_path: Path, separator: str) -> None:
    file = tmp_path / "belle.json"
    opening, closing = ("[", "]") if "," in separator else ("", "")
    with file.open("w") as out:
        out.write(opening + GOOD + separator + '{"instruction": "')
        for _ in range(40):
            out.write("x" * MAX_RECORD_BYTES)
        out.write('"}' + separator + GOOD + closing)
    tracemalloc.start()
    conversations, findings = read(Belle(str(file)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [conversation.source[-1] for conversation in conversations] == ["1", "3"]
    assert findings == [("2", "record-too-long")]
    assert peak < 12 * MAX_RECORD_BYTES


def test_records_are_cut_the_same_wherever_a_chunk_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "belle.json"
    record = {"instruction": 'a\\"', "input": "", "output": '\\\\", {[\\n渡船'}
    file.write_text("\ufeff" + json.dumps([record, record], ensure_ascii=False, indent=1), encoding="utf-8")
    for size in range(1, 40):
        monkeypatch.setattr("lit_sft.corpora._reading.CHUNK_BYTES", size)
        conversations, findings = read(Belle(str(file)))
        assert [said(conversation)[1][1] for conversation in conversations] == ['\\\\", {[\\n渡船'] * 2
        assert findings == [("2", "byte-order-mark")]


def test_the_first_recognizable_record_decides_the_layout_of_a_file(tmp_path: Path) -> None:
    file = write_lines(
        tmp_path / "belle.json",
        {"x": 1},
        {"input": "q", "target": "a"},
        {"instruction": "q", "output": "a"},
        {"input": ""},
    )
    conversations, findings = read(Belle(file))
    assert [conversation.source[-1] for conversation in conversations] == ["2"]
    assert findings == [("1", "unknown-layout"), ("3", "unknown-layout"), ("4", "unknown-layout")]


def test_conversations_may_be_chosen_by_length(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "belle.json", *({"instruction": "q", "output": "a" * n} for n in (1, 2, 3, 4)))
    corpus = Belle(file, min_characters=3, max_characters=4)
    conversations, findings = read(corpus)
    assert [conversation.source[-1] for conversation in conversations] == ["2", "3"]
    assert not findings
