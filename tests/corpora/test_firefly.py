"""Firefly records become conversations, or are refused with a reason."""

from pathlib import Path
from typing import Any

import pytest
from reading import read, said, write_lines

from lit_sft.corpora.firefly import Firefly
from lit_sft.errors import BadRecord, DataError


def record(target: Any, kind: str = "OpenQA") -> dict[str, Any]:
    return {"kind": kind, "input": " 问\n", "target": target}


def test_a_task_and_its_solution() -> None:
    assert said(Firefly("x").parse(record("\n答 "))) == [("user", "问"), ("assistant", "答")]


@pytest.mark.parametrize("target", ["a1</s>q2</s>a2", "a1</s> q2 </s>\na2</s>", "a1</s>q2</s>a2</s>q3</s>"])
def test_a_target_may_go_on_as_a_talk_and_ends_with_an_answer(target: str) -> None:
    expected = [("user", "问"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
    assert said(Firefly("x").parse(record(target))) == expected


def test_a_dropped_last_question_is_reported(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "firefly.jsonl", record("a1</s>q2"), record("a"))
    conversations, findings = read(Firefly(file))
    assert said(conversations[0]) == [("user", "问"), ("assistant", "a1")]
    assert findings == [("1", "unanswered-utterance-dropped")]


@pytest.mark.parametrize("target", ["<s>旧价</s>新价", "<eoh> <|1|> [gMASK] <reserved_106>"])
def test_marks_that_are_text_stay_text(target: str) -> None:
    assert said(Firefly("x").parse(record(target)))[1:] == [("assistant", target)]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (record(None), "no-answer"),
        (record("</s>"), "no-answer"),
        (record("a1</s> </s>a2"), "no-prompt"),
        (record("</s>q2</s>a2"), "no-answer"),
        (record(7), "answer-not-text"),
        ({"kind": "NLI", "input": None, "target": "a"}, "no-prompt"),
        ({"kind": "NLI", "input": 3.5, "target": "a"}, "prompt-not-text"),
    ],
)
def test_an_unusable_record_is_refused_with_its_reason(raw: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRecord, match=f"^{reason}$"):
        Firefly("x").parse(raw)


def test_kinds_are_chosen_by_name_and_a_name_without_records_is_an_error(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "firefly.jsonl", *(record("a", kind) for kind in ("NLI", "BELLE", "Cot", "NLI")))
    corpus = Firefly(file, kinds=["NLI"])
    assert [conversation.source[-1] for conversation in read(corpus)[0]] == ["1", "4"]
    with pytest.raises(DataError, match="has kind Belle. Found: BELLE, Cot, NLI"):
        read(Firefly(file, kinds=["NLI", "Belle"]))
