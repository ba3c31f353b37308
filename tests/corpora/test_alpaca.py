"""Instructions and answers are read by the names of their columns, whatever these are."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset  # type: ignore[import-untyped]
from reading import read_findings, said

from lit_sft.corpora.alpaca import Alpaca
from lit_sft.errors import BadRecord, ConfigError

ALL: dict[str, Any] = {
    "instruction": "译：",
    "input": "渡船",
    "output": " ferry\n",
    "system": "你是译者。",
    "history": [["你好", "你好！"]],
}
TALK = [
    ("system", "你是译者。"),
    ("user", "你好"),
    ("assistant", "你好！"),
    ("user", "译：\n渡船"),
    ("assistant", "ferry"),
]
CHINESE = {"instruction": "问题", "input": "补充", "output": "回答", "system": "身份", "history": "之前"}


def test_system_and_history_stand_before_the_instruction_and_its_input_behind_it() -> None:
    assert said(Alpaca("x").parse(ALL)) == TALK


def test_columns_of_other_names_are_read_by_them() -> None:
    renamed = {CHINESE[part]: value for part, value in ALL.items()}
    assert said(Alpaca("x", columns=CHINESE).parse(renamed)) == TALK
    with pytest.raises(BadRecord, match="no-prompt"):
        Alpaca("x", columns=CHINESE).parse(ALL)


def test_a_table_is_read_by_its_columns_and_others_are_counted(tmp_path: Path) -> None:
    rows = [{"问题": "几点？", "回答": "八点。", "备注": "渡口"}, {"问题": "末班？", "回答": "六点。", "备注": ""}]
    Dataset.from_list(rows).to_parquet(tmp_path / "table.parquet")
    corpus = Alpaca(str(tmp_path / "table.parquet"), columns={"instruction": "问题", "output": "回答"})
    conversations, findings = read_findings(corpus)
    assert [said(each)[0] for each in conversations] == [("user", "几点？"), ("user", "末班？")]
    assert [finding.reason for finding in findings] == ["unused-key 备注"]


def test_columns_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="there is no part 'answer'. Accepted: history, input, instruction, output"):
        Alpaca("x", columns={"answer": "回答"})
    with pytest.raises(ConfigError, match="问题 is named for two parts"):
        Alpaca("x", columns={"instruction": "问题", "output": "问题"})
