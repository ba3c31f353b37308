"""MOSS conversations in both layouts, with and without tools."""

from pathlib import Path
from typing import Any

import pytest
from reading import read, said, write_lines

from lit_sft.conversation import Message
from lit_sft.corpora.moss_sft import MossSft
from lit_sft.errors import BadRecord, DataError


def turn(human: str, answer: str, **fields: str) -> dict[str, Any]:
    """A turn of fnlp; a field that is not given is None."""
    return {
        "Human": f"<|Human|>: {human}<eoh>\n",
        "Inner Thoughts": f"<|Inner Thoughts|>: {fields.get('thoughts')}<eot>\n",
        "Commands": f"<|Commands|>: {fields.get('commands')}<eoc>\n",
        "Tool Responses": f"<|Results|>:{fields.get('results', ' None')}<eor>\n",
        "MOSS": f"<|MOSS|>: {answer}<eom>\n",
    }


def fnlp(*turns: Any, meta: Any = "你是小向导。\n") -> dict[str, Any]:
    chat = {f"turn_{number}": turn for number, turn in enumerate(turns, start=1)}
    return {"conversation_id": "1", "meta_instruction": meta, "num_turns": len(chat), "chat": chat, "category": "code"}


def yeungnlp(*turns: Any, category: str = "Code") -> dict[str, Any]:
    return {"conversation_id": 7, "category": category, "conversation": list(turns), "dataset": "moss", "x": 1}


def test_the_meta_instruction_is_the_system_message_and_marks_are_taken_off() -> None:
    conversation = MossSft("x").parse(fnlp(turn("q1 ", " a1"), turn("q2", "a\n\n  2")))
    assert said(conversation) == [
        ("system", "你是小向导。"),
        ("user", "q1"),
        ("assistant", "a1"),
        ("user", "q2"),
        ("assistant", "a\n\n  2"),
    ]
    assert all(not message.thoughts and not message.commands for message in conversation.messages)


def test_a_tool_call_is_a_message_of_its_own_between_question_and_answer() -> None:
    calling = turn("q", "a", thoughts="想", commands='Search("渡船")', results='\nSearch("渡船") =>\n<|1|>: "八点"\n')
    assert MossSft("x").parse(fnlp(calling, turn("q2", "a2"), meta=None)).messages == [
        Message("user", "q"),
        Message("assistant", "", thoughts="想", commands='Search("渡船")'),
        Message("tool", 'Search("渡船") =>\n<|1|>: "八点"'),
        Message("assistant", "a"),
        Message("user", "q2"),
        Message("assistant", "a2"),
    ]


def test_an_asked_tool_that_found_none_is_still_a_call() -> None:
    messages = MossSft("x").parse(fnlp(turn("q", "a", thoughts="想", results="\nNone\n"))).messages
    assert messages[2:4] == [Message("assistant", "", thoughts="想"), Message("tool", "None")]


def test_tools_may_be_dropped_for_models_without() -> None:
    calling = turn("q", "a", thoughts="想", commands="Solve(1)", results="\n1\n")
    assert said(MossSft("x", tools="drop").parse(fnlp(calling)))[1:] == [("user", "q"), ("assistant", "a")]


def test_turns_are_ordered_by_number() -> None:
    record = fnlp(*(turn(f"q{n}", f"a{n}") for n in range(1, 13)))
    record["chat"] = dict(sorted(record["chat"].items()))
    assert [text for role, text in said(MossSft("x").parse(record)) if role == "user"] == [
        f"q{n}" for n in range(1, 13)
    ]


@pytest.mark.parametrize("text", ["见 <sup><|1|></sup> <eor>", "<|Human|>: 是什么？<eoh> 呢", "</s>"])
def test_marks_inside_a_field_stay_text(text: str) -> None:
    assert said(MossSft("x").parse(fnlp(turn(text, text))))[1:] == [("user", text), ("assistant", text)]


def test_the_layout_of_yeungnlp_has_neither_marks_nor_system_message() -> None:
    record = yeungnlp({"human": "q1\n", "assistant": "\na1"}, {"human": "q2", "assistant": "a2"})
    assert said(MossSft("x").parse(record)) == [
        ("user", "q1"),
        ("assistant", "a1"),
        ("user", "q2"),
        ("assistant", "a2"),
    ]


CALL = turn("q", "a", results="\n1\n")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (fnlp(), "no-turns"),
        (fnlp(turn("", "a")), "no-prompt"),
        (fnlp(turn("q", " \n")), "no-answer"),
        (fnlp({**CALL, "MOSS": None}), "no-answer"),
        (fnlp({**CALL, "Commands": 3}), "call-not-text"),
        (fnlp({**CALL, "Inner Thoughts": None}), "no-call"),
        (fnlp({**CALL, "Tool Responses": ["x"]}), "result-not-text"),
        (fnlp("text"), "turn-not-an-object"),
        (fnlp(turn("q", "a"), meta=5), "system-not-text"),
        ({"chat": [turn("q", "a")]}, "turns-not-an-object"),
        ({"chat": {"turn_1": turn("q", "a"), "turn_3": turn("q", "a")}}, "turns-misnumbered"),
        ({"chat": {"first": turn("q", "a")}}, "turns-misnumbered"),
        (yeungnlp(), "no-turns"),
        (yeungnlp("text"), "turn-not-an-object"),
        ({"conversation": "text"}, "turns-not-a-list"),
        (yeungnlp({"human": "q", "assistant": "a"}, {"human": "q"}), "no-answer"),
        (yeungnlp({"human": " ", "assistant": "a"}), "no-prompt"),
    ],
)
def test_an_unusable_record_is_refused_with_its_reason(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRecord, match=f"^{reason}$"):
        MossSft("x").parse(record)


def test_the_other_layout_in_the_same_file_is_a_bad_record(tmp_path: Path) -> None:
    file = write_lines(
        tmp_path / "moss.jsonl", yeungnlp({"human": "q", "assistant": "a"}), fnlp(turn("q", "a")), {"category": "Code"}
    )
    assert read(MossSft(file))[1] == [("1", "unused-key x"), ("2", "unknown-layout"), ("3", "unknown-layout")]


def test_categories_are_chosen_by_name(tmp_path: Path) -> None:
    qa = {"human": "q", "assistant": "a"}
    no_category = {"conversation": [qa]}
    file = write_lines(
        tmp_path / "moss.jsonl", yeungnlp(qa, category="Code"), yeungnlp(qa, category="Harmless"), no_category
    )
    assert [conversation.source[-1] for conversation in read(MossSft(file, categories=["Harmless"]))[0]] == ["2"]
    with pytest.raises(DataError, match="has category Coding. Found: Code, Harmless"):
        read(MossSft(file, categories=["Coding"]))
