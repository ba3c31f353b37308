"""Safety-Prompts: one object with an array of records for each scenario."""

import json
from pathlib import Path
from typing import Any

import pytest
from reading import read, said, write_lines

from lit_sft.corpora.safety_prompts import SafetyPrompts
from lit_sft.errors import BadRecord, DataError


def record(prompt: Any, response: Any = "\n\n答", scenario: str = "Insult") -> dict[str, Any]:
    return {"prompt": prompt, "response": response, "type": scenario}


SCENARIOS = {"Insult": [record("a"), record("b")], "Mental_Health": [], "Privacy": [record("c", scenario="Privacy")]}


@pytest.mark.parametrize(("indent", "places"), [(2, ["3", "8", "16"]), (None, ["1", "1#2", "1#3"])])
def test_the_arrays_of_all_scenarios_are_read_in_order(tmp_path: Path, indent: int | None, places: list[str]) -> None:
    file = tmp_path / "typical_safety_scenarios.json"
    file.write_text(json.dumps(SCENARIOS, ensure_ascii=False, indent=indent), encoding="utf-8")
    conversations, findings = read(SafetyPrompts(str(file)))
    assert [said(conversation) for conversation in conversations] == [
        [("user", prompt), ("assistant", "答")] for prompt in "abc"
    ]
    assert [conversation.source for conversation in conversations] == [f"{file}:{place}" for place in places]
    assert not findings


def test_scenarios_are_chosen_by_the_array_in_which_a_record_stands(tmp_path: Path) -> None:
    file = tmp_path / "safety.json"
    file.write_text(json.dumps({"Privacy": [{"prompt": "a", "response": "b"}], "Insult": [record("c")]}))
    conversations, _ = read(SafetyPrompts(str(file), scenarios=["Privacy"]))
    assert [said(conversation)[0][1] for conversation in conversations] == ["a"]
    with pytest.raises(DataError, match="has type Insults. Found: Insult, Privacy"):
        read(SafetyPrompts(str(file), scenarios=["Insults"]))


def test_in_json_lines_the_type_is_the_scenario(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "safety.jsonl", record("a"), record("b", scenario="Privacy"))
    assert [said(conversation)[0][1] for conversation in read(SafetyPrompts(file, scenarios=["Privacy"]))[0]] == ["b"]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (record("q", ""), "no-answer"),
        (record("q", None), "no-answer"),
        (record("q", 1), "answer-not-text"),
        (record(" "), "no-prompt"),
        ({"response": "a"}, "no-prompt"),
    ],
)
def test_an_unusable_record_is_refused_with_its_reason(raw: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRecord, match=f"^{reason}$"):
        SafetyPrompts("x").parse(raw)


def test_a_file_cut_off_loses_its_last_record_only(tmp_path: Path) -> None:
    file = tmp_path / "safety.json"
    text = json.dumps(SCENARIOS, ensure_ascii=False, indent=2)
    file.write_text(text[: text.index('"c"') + 2], encoding="utf-8")
    conversations, findings = read(SafetyPrompts(str(file)))
    assert len(conversations) == 2
    assert findings == [("16", "broken-json")]
