"""Each layout of preference data becomes the same prompt and answers, best first."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preference_records import ASKED, PAIRS, VERDICTS, bot, gpt, user
from reading import read, write_lines

from lit_sft.conversation import Judged, Message, Preference
from lit_sft.corpora._base import Corpus
from lit_sft.corpora._fields import SAYS_NOTHING
from lit_sft.errors import BadRecord, ConfigError
from lit_sft.plugins import discover
from lit_sft.preferences.alpaca_pairs import AlpacaPairs
from lit_sft.preferences.cvalues import CValues
from lit_sft.preferences.hh_rlhf import HhRlhf
from lit_sft.preferences.medical_reward import MedicalReward
from lit_sft.preferences.moss_rlhf import MossRlhf
from lit_sft.preferences.pku_safe_rlhf import PkuSafeRlhf
from lit_sft.preferences.ranked_outputs import RankedOutputs
from lit_sft.preferences.sharegpt_pairs import ShareGptPairs
from lit_sft.preferences.trl_pairs import TrlPairs
from lit_sft.preferences.unpaired_answers import UnpairedAnswers

TEXTS = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1)


def names(value: Any) -> str:
    return type(value).__name__ if isinstance(value, Corpus) else "-".join(value)


@pytest.mark.parametrize(("corpus", "record"), PAIRS, ids=names)
def test_every_layout_of_pairs_becomes_the_same_preference(corpus: Corpus, record: dict[str, Any]) -> None:
    reading = corpus.read(orjson.dumps(record), corpus.layout_of(record))
    answers = [Message("assistant", "好"), Message("assistant", "差")]
    assert isinstance(reading.record, corpus.record_type)
    assert reading.record == Preference([Message("user", "问")], answers)
    assert reading.repairs == ["one-character-answer"]


@pytest.mark.parametrize(("corpus", "record"), VERDICTS, ids=names)
def test_every_layout_of_single_answers_becomes_the_same_verdict(corpus: Corpus, record: dict[str, Any]) -> None:
    reading = corpus.read(orjson.dumps(record), corpus.layout_of(record))
    assert isinstance(reading.record, corpus.record_type)
    assert reading.record == Judged([Message("user", "问")], Message("assistant", "好"), is_good=True)


def test_no_layout_is_left_out_of_these_tests() -> None:
    tested = {type(corpus) for corpus, _ in [*PAIRS, *VERDICTS]}
    assert tested == set(discover("lit_sft.preferences._base.JudgedAnswers").values())


@settings(max_examples=40, deadline=None)
@given(
    key=st.one_of(st.text(max_size=8), st.sampled_from(["history", "system", "tools", "margin", "label", "prompt"])),
    value=st.one_of(st.booleans(), st.integers(), TEXTS, st.lists(TEXTS, min_size=1)),
    layout=st.sampled_from([*PAIRS, *VERDICTS]),
)
def test_no_key_that_is_added_is_lost_without_a_count(
    key: str, value: Any, layout: tuple[Corpus, dict[str, Any]]
) -> None:
    corpus, record = layout
    says_nothing = {*SAYS_NOTHING, "loss", "weight", "train", "score_chosen", "score_rejected", "prompt_id"}
    if key in record or key in says_nothing or (isinstance(value, str) and not value.strip()):
        return
    plain = corpus.read(orjson.dumps(record), corpus.layout_of(record)).record
    try:
        reading = corpus.read(orjson.dumps({**record, key: value}), corpus.layout_of(record))
    except (BadRecord, TypeError):
        return  # refused with a reason, or no JSON
    assert any(reason.startswith("unused-key ") for reason in reading.repairs) or reading.record != plain


def prompt_of(corpus: Corpus, **record: Any) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in corpus.parse(record).conversations()[0].messages[:-1]]


@pytest.mark.parametrize(
    ("corpus", "record"),
    [
        (ShareGptPairs("x"), {"conversations": ASKED, "chosen": "好", "rejected": "差"}),
        (MedicalReward("x"), {"question": "问", "response_chosen": "好", "response_rejected": "差"}),
        (RankedOutputs("x"), {"instruction": "问", "output": ["好", "差"]}),
        (AlpacaPairs("x"), {"instruction": "问", "chosen": "好", "rejected": "差"}),
        (TrlPairs("x"), {"prompt": "问", "chosen": "好", "rejected": "差"}),
        (TrlPairs("x"), {"prompt": [user("问")], "chosen": "好", "rejected": "差"}),
        (TrlPairs("x"), {"chosen": [user("问"), bot("好")], "rejected": [user("问"), bot("差")]}),
        (UnpairedAnswers("x"), {"prompt": "问", "completion": "好", "label": True}),
        (UnpairedAnswers("x"), {"messages": [user("问"), bot("好")], "label": True}),
    ],
    ids=names,
)
def test_a_system_message_beside_the_prompt_comes_first(corpus: Corpus, record: dict[str, Any]) -> None:
    assert prompt_of(corpus, **record, system="你是向导。") == [("system", "你是向导。"), ("user", "问")]
    assert prompt_of(corpus, **record, system="") == [("user", "问")]


def test_earlier_rounds_come_before_the_question() -> None:
    earlier = [("user", "前"), ("assistant", "答"), ("user", "问")]
    history = [["前", "答"]]
    pairs = {"chosen": "好", "rejected": "差"}
    assert prompt_of(AlpacaPairs("x"), instruction="问", history=history, **pairs) == earlier
    assert prompt_of(RankedOutputs("x"), instruction="问", history=history, output=["好", "差"]) == earlier
    responses = {"response_chosen": "好", "response_rejected": "差"}
    assert prompt_of(MedicalReward("x"), question="问", history=history, **responses) == earlier
    assert prompt_of(MossRlhf("x"), chosen=["前", "答", "问", "好"], rejected=["前", "答", "问", "差"]) == earlier
    said = "\n\nHuman: 前\n\nAssistant: 答\n\nHuman: 问\n\nAssistant: "
    assert prompt_of(HhRlhf("x"), chosen=f"{said}好", rejected=f"{said}差") == earlier
    talk = [{"from": "system", "value": ""}, {"from": "human", "value": "前"}, gpt("答"), *ASKED]
    assert prompt_of(ShareGptPairs("x"), conversations=talk, **pairs) == earlier


def test_an_input_follows_the_instruction_on_a_new_line() -> None:
    assert prompt_of(AlpacaPairs("x"), instruction="译：", input="渡船", chosen="a", rejected="b") == [
        ("user", "译：\n渡船")
    ]


def test_a_ranking_keeps_its_order() -> None:
    record = RankedOutputs("x").parse({"instruction": "问", "output": ["甲", "乙", "丙"]})
    assert [answer.content for answer in record.answers] == ["甲", "乙", "丙"]


def test_columns_may_be_called_differently(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", {"prompt": "问", "chosen": "好的", "reject": "差的"})
    records, findings = read(TrlPairs(file, rejected_key="reject"))
    assert [answer.content for answer in records[0].answers] == ["好的", "差的"]
    assert findings == []
    with pytest.raises(ConfigError, match="are both chosen; give two keys"):
        TrlPairs(file, rejected_key="chosen")


def test_the_better_or_the_safer_response_comes_first() -> None:
    record = {"prompt": "问", "response_0": "甲", "response_1": "乙", "better_response_id": 0, "safer_response_id": 1}
    assert PkuSafeRlhf("x").parse(record).answers[0].content == "甲"
    assert PkuSafeRlhf("x", order_by="safer").parse(record).answers[0].content == "乙"
    with pytest.raises(BadRecord, match="^no-better-response$"):
        PkuSafeRlhf("x").parse({**record, "better_response_id": None})


def test_the_types_of_the_answers_are_the_kind_of_the_record(tmp_path: Path) -> None:
    record = {"prompt": "问", "pos_resp": "好的", "neg_resp": "差的", "pos_type": "拒绝为主", "neg_type": "风险回复"}
    file = write_lines(tmp_path / "a.jsonl", record, {**record, "pos_type": "拒绝&正向建议"})
    records, findings = read(CValues(file))
    assert [found.category for found in records] == ["拒绝为主 > 风险回复", "拒绝&正向建议 > 风险回复"]
    assert findings == []
    assert len(read(CValues(file, types=["拒绝为主 > 风险回复"]))[0]) == 1


def test_filters_by_length_look_at_the_shortest_and_the_longest_answer(tmp_path: Path) -> None:
    lines = [{"prompt": "问", "chosen": "长" * n, "rejected": "短" * m} for n, m in [(9, 2), (3, 9), (4, 3)]]
    file = write_lines(tmp_path / "a.jsonl", *lines)
    assert [record.answers[0].content for record in read(TrlPairs(file, min_characters=4))[0]] == ["长" * 3, "长" * 4]
    assert [record.answers[0].content for record in read(TrlPairs(file, max_characters=9))[0]] == ["长" * 4]


@pytest.mark.parametrize(("corpus", "record"), [*PAIRS, *VERDICTS], ids=names)
def test_lines_are_records_however_long_the_first_and_whatever_key_it_begins_with(
    corpus: Corpus, record: dict[str, Any], tmp_path: Path
) -> None:
    """A line that begins with a list of objects is not an object of arrays."""
    for first in [key for key, value in record.items() if isinstance(value, list)]:
        long = {first: record[first], **record, "source": "x" * 70_000}
        file = write_lines(tmp_path / f"{first}.json", long, record)
        assert len(read(type(corpus)(file))[0]) == 2
