"""Anyone's own conversations, in the form of OpenAI or ShareGPT."""

from typing import Any

import pytest
from reading import said

from lit_sft.corpora.jsonl_chat import JsonlChat
from lit_sft.errors import BadRecord


def openai(*messages: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


def sharegpt(*messages: tuple[Any, Any], **others: Any) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": value} for role, value in messages], **others}


EXPECTED = [("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]


@pytest.mark.parametrize(
    "record",
    [
        openai(*EXPECTED),
        openai(("developer", "s"), *EXPECTED[1:]),
        sharegpt(("system", "s"), ("human", "q1"), ("gpt", "a1"), ("human", "q2"), ("gpt", "a2")),
        sharegpt(("human", " q1"), ("gpt", "a1\n"), ("user", "q2"), ("assistant", "a2"), system="s", id="7"),
    ],
)
def test_both_forms_become_the_same_conversation(record: dict[str, Any]) -> None:
    assert said(JsonlChat("x").parse(record)) == EXPECTED


def test_an_empty_system_message_says_nothing() -> None:
    assert said(JsonlChat("x").parse(openai(("system", ""), ("user", "q"), ("assistant", "a")))) == [
        ("user", "q"),
        ("assistant", "a"),
    ]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (openai(), "no-turns"),
        ({"messages": None}, "no-turns"),
        ({"messages": "text"}, "turns-not-a-list"),
        ({"messages": ["text"]}, "turn-not-an-object"),
        (openai(("system", "s")), "no-turns"),
        (openai(("user", "q")), "no-last-answer"),
        (openai(("user", "q"), ("assistant", "a"), ("user", "q")), "no-last-answer"),
        (openai(("assistant", "a"), ("user", "q")), "roles-out-of-order"),
        (openai(("user", "q"), ("user", "q"), ("assistant", "a")), "roles-out-of-order"),
        (openai(("user", "q"), ("system", "s"), ("assistant", "a")), "roles-out-of-order"),
        (openai(("user", "q"), ("assistant", "")), "no-answer"),
        (openai(("user", "q"), ("assistant", [{"type": "text", "text": "a"}])), "answer-not-text"),
        (openai(("user", "q"), ("tool", "x")), "unknown-role"),
        (openai((["user"], "q")), "unknown-role"),
        (sharegpt(("human", "q"), ("gpt", "a"), system={"a": 1}), "system-not-text"),
        (sharegpt(("system", "s"), ("human", "q"), ("gpt", "a"), system="s"), "roles-out-of-order"),
        (sharegpt(("human", "q"), ("bing", "a")), "unknown-role"),
    ],
)
def test_what_is_not_a_conversation_is_refused_with_its_reason(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRecord, match=f"^{reason}$"):
        JsonlChat("x").parse(record)
