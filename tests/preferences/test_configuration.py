"""A configuration names layouts of preference data by their short names, among the corpora."""

from typing import Any

import pytest

from lit_sft.configuration import build
from lit_sft.corpora._base import Corpus
from lit_sft.errors import ConfigError
from lit_sft.preferences.hh_rlhf import HhRlhf
from lit_sft.preferences.trl_pairs import TrlPairs


def corpora(*named: dict[str, Any]) -> list[Any]:
    found: list[Any] = build("corpora", list[Corpus], list(named))
    return found


def test_layouts_are_named_like_corpora() -> None:
    pairs, transcripts = corpora(
        {"class_path": "TrlPairs", "init_args": {"path": "a.jsonl", "rejected_key": "reject", "weight": 2}},
        {"class_path": "HhRlhf", "init_args": {"path": "b.jsonl.gz"}},
    )
    assert isinstance(pairs, TrlPairs)
    assert (pairs.chosen_key, pairs.rejected_key, pairs.weight) == ("chosen", "reject", 2)
    assert isinstance(transcripts, HhRlhf)


def test_a_misspelt_layout_is_answered_with_layouts_and_corpora() -> None:
    with pytest.raises(ConfigError, match=r"there is no class 'TrlPair'. Did you mean 'TrlPairs'\? Accepted: .*Belle"):
        corpora({"class_path": "TrlPair", "init_args": {"path": "a.jsonl"}})


def test_options_decide_how_records_are_read() -> None:
    """They are part of the names of what is cached, the same in every process."""
    options = TrlPairs("a.jsonl", rejected_key="reject").options
    assert options["rejected_key"] == "reject"
    assert all(isinstance(value, str | int | float | list | None) for value in options.values())
