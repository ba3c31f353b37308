"""What `predict` answers."""

import gzip
import json
from pathlib import Path

import pytest
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
