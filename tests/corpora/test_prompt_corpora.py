"""Corpora that ask and do not answer."""

import json
from pathlib import Path

import pytest
from reading import read, said, write_lines

from lit_sft.corpora.cvalues_prompts import CValuesPrompts
from lit_sft.corpora.moss_rlhf_prompts import MossRlhfPrompts


def test_prompts_of_cvalues_have_a_domain(tmp_path: Path) -> None:
    record = {"id_": 1, "prompt": "问 ", "domain_en": "law", "domain_zh": "法律"}
    file = write_lines(tmp_path / "a.jsonl", record, {**record, "domain_en": "environment"}, {**record, "prompt": ""})
    talks, findings = read(CValuesPrompts(file))
    assert [said(talk) for talk in talks] == [[("user", "问")]] * 2
    assert [talk.category for talk in talks] == ["law", "environment"]
    assert findings == [("3", "no-prompt")]
    assert len(read(CValuesPrompts(file, domains=["law"]))[0]) == 1


def test_utterances_of_moss_rlhf_begin_with_the_user(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    lists = [["问"], ["问", "答"], ["问", "答", "再问"], [], ["问", ""], ["问", 1]]
    file.write_text(json.dumps(lists, ensure_ascii=False, indent=1), encoding="utf-8")
    talks, findings = read(MossRlhfPrompts(str(file)))
    assert [[role for role, _ in said(talk)] for talk in talks] == [
        ["user"],
        ["user", "assistant"],
        ["user", "assistant", "user"],
    ]
    assert talks[1].reference() == "答"
    assert [reason for _, reason in findings] == ["no-turns", "no-turns", "turns-not-text"]


@pytest.mark.parametrize("text", ['[["a"], ["b", "c"]]', '[\n["a"],\n["b","c"]]\n'])
def test_lists_are_found_in_an_array_however_it_is_laid_out(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert len(read(MossRlhfPrompts(str(tmp_path / "a.json")))[0]) == 2
