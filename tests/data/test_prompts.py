"""What `predict` answers."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from lightning.pytorch.plugins import HalfPrecision

from lit_sft.conversation import Prompt
from lit_sft.data.prompts import read_prompts
from lit_sft.errors import DataError


def test_a_text_file_holds_a_prompt_on_each_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeff你好\r\n\n再见\n", encoding="utf-8")
    prompts = read_prompts(file)
    assert [prompt.messages[0].content for prompt in prompts] == ["你好", "再见"]
    assert [prompt.source for prompt in prompts] == [f"{file}:1", f"{file}:3"]


def test_lines_end_as_on_any_system_and_a_folder_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("一\r二\r\n三\u2028四\n".encode())
    assert asked(tmp_path / "a.txt") == [["一"], ["二"], ["三\u2028四"]]
    with pytest.raises(DataError, match="is a folder; give a file in it"):
        read_prompts(tmp_path)


def test_json_lines_may_hold_references(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '{"prompt": "q1", "reference": "r1"}\n{"prompt": "q2"}\n{"instruction": "q3", "input": "x", "output": "r3"}\n'
    )
    prompts = read_prompts(file)
    assert [prompt.messages[0].content for prompt in prompts] == ["q1", "q2", "q3\nx"]
    assert [prompt.reference() for prompt in prompts] == ["r1", None, "r3"]


def test_an_unreadable_prompt_stops_so_that_answers_match_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "q1"}\n{"prompt": \n')
    with pytest.raises(DataError, match=r"prompts.jsonl:2: broken-json"):
        read_prompts(file)


@pytest.mark.parametrize(("name", "content"), [("a.txt", None), ("a.txt", "\n"), ("a.jsonl", None), ("a.jsonl", "")])
def test_no_prompts_is_an_error(tmp_path: Path, name: str, content: str | None) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match="not found|empty"):
        read_prompts(tmp_path / name)


def test_prompts_pass_the_conversion_of_a_half_precision() -> None:
    prompts = [Prompt([1, 2], "你好", None, "a.txt:1")]
    assert HalfPrecision("bf16-true").convert_input(prompts) == prompts


@pytest.mark.parametrize("name", ["a.ndjson", "a.JSONL", "a.txt", "a.jsonl.gz"])
def test_the_content_tells_records_from_text(tmp_path: Path, name: str) -> None:
    talk = {"messages": [{"role": "user", "content": "q"}]}
    data = f'{{"prompt": "q", "system": "s", "history": [["q0", "a0"]]}}\n{json.dumps(talk)}\n'
    (tmp_path / name).write_bytes(gzip.compress(data.encode()) if name.endswith("gz") else data.encode())
    first, second = read_prompts(tmp_path / name)
    assert [message.content for message in first.messages] == ["s", "q0", "a0", "q"]
    assert [message.content for message in second.messages] == ["q"]


def test_a_key_that_is_not_asked_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "q", "tools": ["t"]}\n')
    with pytest.raises(DataError, match="unused-key tools"):
        read_prompts(tmp_path / "a.jsonl")


def asked(file: Path) -> list[list[str]]:
    """What is said in each prompt, its reference included."""
    return [[message.content for message in prompt.messages] for prompt in read_prompts(file)]


TABLE = (
    'id,Prompt,reference,system,history\r\n1,"q1, ""said""\nover lines",r1,,\r\n\r\n2,q2,,s,"[[""q0"", ""a0""]]"\r\n'
)


@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.CSV.gz", "a.csv.zst"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_a_table_with_a_header_is_read_as_records(tmp_path: Path, name: str, mark: str, delimiter: str) -> None:
    rows = list(csv.reader(io.StringIO(TABLE, newline="")))
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows(rows)
    data = (mark + text.getvalue()).encode()
    compressors: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstandard.compress}
    (tmp_path / name).write_bytes(compressors.get(Path(name).suffix, bytes)(data))
    assert asked(tmp_path / name) == [['q1, "said"\nover lines', "r1"], ["s", "q0", "a0", "q2"]]
    assert [prompt.source for prompt in read_prompts(tmp_path / name)] == [
        f"{tmp_path / name}:2",
        f"{tmp_path / name}:5",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('prompt,reference\nq1,"r1\nq2,r2\n', "a.csv cannot be read as a table: .*, in the row that begins on line 2"),
        ("prompt,reference\nq1,r1,x\n", "line 2 has 3 cells under 2 names"),
        ("prompt,Prompt\nq1,q2\n", "there are two columns 'prompt'"),
        ("prompt,chosen\nq1,a\n", "a.csv:2: unused-key chosen"),
        ("text,label\nq1,a\n", "has no header with a column of prompts in its first line. Name it prompt, instruction"),
        ("question\n", "no record of .*a.csv could be read"),
    ],
)
def test_a_table_that_would_lose_something_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_prompts(tmp_path / "a.csv")


def test_the_column_of_row_numbers_that_pandas_writes_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",question,answer\n0,q,a\n")
    assert asked(tmp_path / "a.csv") == [["q", "a"]]


def test_a_sentence_with_a_comma_is_not_a_header(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("your question, please\nwhat is a prompt, or a query?\n")
    assert asked(tmp_path / "a.txt") == [["your question, please"], ["what is a prompt, or a query?"]]


def test_an_array_of_texts_holds_a_prompt_in_each(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('\ufeff["q1",\n "q2 \\"x\\"\\ny"]\n', encoding="utf-8")
    assert asked(tmp_path / "a.json") == [["q1"], ['q2 "x"\ny']]
    assert [prompt.source for prompt in read_prompts(tmp_path / "a.json")] == [
        f"{tmp_path / 'a.json'}:1",
        f"{tmp_path / 'a.json'}:2",
    ]
    (tmp_path / "a.json").write_text('["q1", ""]')
    with pytest.raises(DataError, match="a.json:1#2: no-prompt"):
        read_prompts(tmp_path / "a.json")


def test_records_of_other_corpora_can_be_asked(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"kind": "NLI", "input": "q", "target": "a"}\n')
    assert asked(tmp_path / "a.jsonl") == [["q", "a"]]


@pytest.mark.parametrize(("encoding", "name"), [("gb18030", "GB18030"), ("utf-16", "UTF-16")])
def test_another_encoding_is_named_with_the_command_that_converts_it(tmp_path: Path, encoding: str, name: str) -> None:
    (tmp_path / "a.txt").write_text("渡船几点开？\n", encoding=encoding)
    with pytest.raises(DataError, match=f"not UTF-8. Convert it: iconv -f {name} -t UTF-8 .*a.txt"):
        read_prompts(tmp_path / "a.txt")
