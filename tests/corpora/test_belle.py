"""BELLE records become conversations, or are refused with a reason."""

import json
from pathlib import Path
from typing import Any

import pytest
from reading import read_findings, said

from lit_sft.conversation import Conversation
from lit_sft.corpora._base import Finding
from lit_sft.corpora._splitting import MAX_RECORD_BYTES
from lit_sft.corpora.belle import Belle
from lit_sft.errors import BadRecord, DataError

GOOD = '{"instruction": "问\\n", "input": "", "output": "\\n答"}'


def read(path: Path) -> tuple[list[Conversation], list[Finding]]:
    return read_findings(Belle(str(path)))


def test_edges_are_stripped_and_the_inside_is_kept() -> None:
    record = {"instruction": "  写代码：\n\n    x = 1\n", "input": "", "output": "\ndef f():\n    return 1\n"}
    question, answer = Belle("x").parse(record).messages
    assert (question.role, question.content) == ("user", "写代码：\n\n    x = 1")
    assert (answer.role, answer.content) == ("assistant", "def f():\n    return 1")


def test_an_input_follows_the_instruction_on_a_new_line() -> None:
    record = {"instruction": "翻译：\n", "input": "渡船 ", "output": "ferry"}
    assert Belle("x").parse(record).messages[0].content == "翻译：\n渡船"


def test_a_history_of_human_and_assistant_becomes_turns() -> None:
    history = "Human:你好\nAssistant:你好！\n有一句 Human: 在行中\nHuman: 几点开？ \nAssistant:"
    assert said(Belle("x").parse({"instruction": history, "input": "", "output": "\n八点。"})) == [
        ("user", "你好"),
        ("assistant", "你好！\n有一句 Human: 在行中"),
        ("user", "几点开？"),
        ("assistant", "八点。"),
    ]


@pytest.mark.parametrize(
    "instruction", ["Human:是什么意思？", "请续写：\nHuman:你好\nAssistant:", "人：问\n机器：答", "渡船…\\n\\n"]
)
def test_a_task_that_only_mentions_speakers_is_one_question(instruction: str) -> None:
    assert said(Belle("x").parse({"instruction": instruction, "output": "a"})) == [
        ("user", instruction),
        ("assistant", "a"),
    ]


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        ("Human:a\nHuman:b\nAssistant:", "roles-out-of-order"),
        ("Human:a\nAssistant:b\nAssistant:", "roles-out-of-order"),
        ("Human:a\nAssistant:\nHuman:c\nAssistant:", "no-answer"),
        ("Human: \nAssistant:", "no-prompt"),
    ],
)
def test_a_history_out_of_order_is_refused(history: str, reason: str) -> None:
    with pytest.raises(BadRecord, match=f"^{reason}$"):
        Belle("x").parse({"instruction": history, "output": "a"})


def test_the_first_upload_has_input_and_target() -> None:
    assert said(Belle("x").parse({"input": "q\n", "target": " a"})) == [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize("user", ["human", "user"])
def test_conversations_name_their_speakers(user: str) -> None:
    turns = [{"from": user, "value": "q"}, {"from": "assistant", "value": "a"}]
    assert said(Belle("x").parse({"id": "1", "conversations": turns})) == [("user", "q"), ("assistant", "a")]
    with pytest.raises(BadRecord, match="^roles-out-of-order$"):
        Belle("x").parse({"conversations": turns[::-1]})


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"instruction": "q", "input": ""}, "no-answer"),
        ({"instruction": "q", "input": "", "output": None}, "no-answer"),
        ({"instruction": "q", "input": "", "output": " \n"}, "no-answer"),
        ({"instruction": "", "input": "", "output": "a"}, "no-prompt"),
        ({"output": "a"}, "no-prompt"),
        ({"instruction": 3, "input": "", "output": "a"}, "prompt-not-text"),
        ({"instruction": "q", "input": "", "output": ["a"]}, "answer-not-text"),
        ({"instruction": "q", "input": {"x": 1}, "output": "a"}, "input-not-text"),
    ],
)
def test_an_unusable_record_is_refused_with_its_reason(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRecord, match=f"^{reason}$"):
        Belle("x").parse(record)


def test_every_kind_of_dirt_is_named_with_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "belle.json"
    long = json.dumps({"instruction": "长" * MAX_RECORD_BYTES, "input": "", "output": "a"}, ensure_ascii=False)
    lines = [
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.encode() + b"\r",
        b"",
        b'{"instruction": "q", "input": ',
        b'{"instruction": "q", "input": ""}',
        b"[1, 2]",
        b'{"instruction": "\xff\xfe", "input": "", "output": "a"}',
        long.encode(),
        GOOD.encode(),
        b'{"instruction": "q", "in',
    ]
    file.write_bytes(b"\n".join(lines))
    conversations, findings = read(file)
    assert [conversation.source for conversation in conversations] == [f"{file}:{line}" for line in (1, 2, 9)]
    assert [(finding.source, finding.reason, finding.is_kept) for finding in findings] == [
        (f"{file}:1", "byte-order-mark", True),
        (f"{file}:2", "crlf", True),
        (f"{file}:3", "empty-line", False),
        (f"{file}:4", "broken-json", False),
        (f"{file}:5", "no-answer", False),
        (f"{file}:6", "not-an-object", False),
        (f"{file}:7", "not-utf-8", False),
        (f"{file}:8", "record-too-long", False),
        (f"{file}:10", "broken-json", False),
    ]
    assert all(len(finding.excerpt) <= 200 for finding in findings)


def test_separators_of_unicode_inside_a_string_do_not_end_a_line(tmp_path: Path) -> None:
    file = tmp_path / "belle.json"
    file.write_text('{"instruction": "a\u2028b\u0085c", "input": "", "output": "d"}\n', encoding="utf-8")
    conversations, findings = read(file)
    assert conversations[0].messages[0].content == "a\u2028b\u0085c"
    assert not findings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not found"),
        ("", "is empty"),
        (
            '{"question": "q", "answer": "a"}\n',
            "Expected one JSON object a line with the keys instruction, input, output",
        ),
    ],
)
def test_an_unusable_file_is_an_error_that_names_it(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "belle.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as error:
        read(file)
    assert str(file) in str(error.value)
