"""What is wrong in preference data is refused under a stable name, or kept and counted."""

import json
from pathlib import Path
from typing import Any

import pytest
from goldens import golden_json
from hypothesis import given, settings
from hypothesis import strategies as st
from preference_records import PAIRS, VERDICTS
from reading import read, write_lines

from lit_sft.corpora._base import Corpus
from lit_sft.corpora.belle import Belle
from lit_sft.errors import BadRecord, DataError
from lit_sft.preferences._base import PreferenceCorpus
from lit_sft.preferences.cvalues import CValues
from lit_sft.preferences.hh_rlhf import HhRlhf
from lit_sft.preferences.moss_rlhf import MossRlhf
from lit_sft.preferences.ranked_outputs import RankedOutputs
from lit_sft.preferences.sharegpt_pairs import ShareGptPairs
from lit_sft.preferences.trl_pairs import TrlPairs
from lit_sft.preferences.unpaired_answers import UnpairedAnswers

USER, BOT = {"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}
HUMAN, GPT = {"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}
PAIR = {"prompt": "问", "chosen": "好的", "rejected": "差的"}


@pytest.mark.parametrize(
    ("corpus", "record", "reason"),
    [
        (TrlPairs, {**PAIR, "chosen": "差的\n "}, "equal-answers"),
        (TrlPairs, {**PAIR, "chosen": " "}, "no-chosen"),
        (TrlPairs, {**PAIR, "rejected": None}, "no-rejected"),
        (TrlPairs, {"prompt": "问", "chosen": "好的"}, "no-rejected"),
        (TrlPairs, {**PAIR, "rejected": []}, "no-rejected"),
        (TrlPairs, {**PAIR, "rejected": [BOT, BOT]}, "rejected-not-one-message"),
        (TrlPairs, {**PAIR, "rejected": ["差的"]}, "rejected-not-one-message"),
        (TrlPairs, {**PAIR, "rejected": 7}, "rejected-not-text"),
        (TrlPairs, {**PAIR, "rejected": [USER]}, "rejected-not-by-assistant"),
        (TrlPairs, {**PAIR, "prompt": [USER, BOT]}, "prompt-ends-with-answer"),
        (TrlPairs, {**PAIR, "prompt": [USER, USER]}, "roles-out-of-order"),
        (TrlPairs, {**PAIR, "prompt": ""}, "no-prompt"),
        (TrlPairs, {"chosen": "天是蓝的。", "rejected": "天是绿的。"}, "no-prompt"),
        (TrlPairs, {**PAIR, "margin": float("nan")}, "margin-not-a-number"),
        (TrlPairs, {**PAIR, "margin": "2"}, "margin-not-a-number"),
        (TrlPairs, {**PAIR, "margin": True}, "margin-not-a-number"),
        (TrlPairs, {"chosen": [USER, BOT], "rejected": [USER, BOT]}, "equal-answers"),
        (TrlPairs, {"chosen": [USER, BOT], "rejected": [{**USER, "content": "另"}, BOT]}, "prompts-differ"),
        (TrlPairs, {"chosen": [USER, BOT], "rejected": [USER, BOT, USER, BOT]}, "prompts-differ"),
        (TrlPairs, {"chosen": [USER, BOT], "rejected": [BOT, USER]}, "roles-out-of-order"),
        (TrlPairs, {"chosen": [USER, BOT, USER], "rejected": [USER, BOT]}, "no-chosen"),
        (
            TrlPairs,
            {"prompt": "另", "chosen": [USER, {**BOT, "content": "好"}], "rejected": [USER, BOT]},
            "prompts-differ",
        ),
        (ShareGptPairs, {"conversations": [HUMAN, GPT], "chosen": "好", "rejected": "差"}, "prompt-ends-with-answer"),
        (ShareGptPairs, {"conversations": [HUMAN], "chosen": HUMAN, "rejected": GPT}, "chosen-not-by-assistant"),
        (ShareGptPairs, {"conversations": [], "chosen": "好", "rejected": "差"}, "no-turns"),
        (RankedOutputs, {"instruction": "问", "output": ["好"]}, "one-answer"),
        (RankedOutputs, {"instruction": "问", "output": ["好", "好"]}, "equal-answers"),
        (RankedOutputs, {"instruction": "问", "output": ["好", "差", "好"]}, "answer-ranked-twice"),
        (RankedOutputs, {"instruction": "问", "output": ["好", ""]}, "no-answer"),
        (RankedOutputs, {"instruction": "问", "output": "好"}, "answers-not-a-list"),
        (RankedOutputs, {"instruction": "问", "output": []}, "no-answer"),
        (MossRlhf, {"chosen": ["问", "好"], "rejected": ["另", "差"]}, "prompts-differ"),
        (MossRlhf, {"chosen": ["问", "好"], "rejected": []}, "no-rejected"),
        (MossRlhf, {"chosen": ["问", "好"], "rejected": ["问", " "]}, "no-rejected"),
        (MossRlhf, {"chosen": ["问", "好", "问"], "rejected": ["问", "差", "问"]}, "no-last-answer"),
        (MossRlhf, {"chosen": "问", "rejected": "差"}, "chosen-not-a-list"),
        (CValues, {"prompt": "问", "pos_resp": "好", "neg_resp": None}, "no-rejected"),
    ],
)
def test_a_pair_that_teaches_nothing_or_the_wrong_thing_is_refused(
    corpus: type[PreferenceCorpus], record: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BadRecord, match=f"^{reason}$"):
        corpus("x").parse(record)


SAID = "\n\nHuman: 问\n\nAssistant:"


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (f"{SAID} 好", f"{SAID}", "no-rejected"),
        (f"{SAID} ", f"{SAID} 差", "no-chosen"),
        (f"{SAID} 好", f"{SAID} 好 ", "equal-answers"),
        (f"{SAID} 好", "\n\nHuman: 另\n\nAssistant: 差", "prompts-differ"),
        (f"{SAID} 好\n\nHuman: 谢谢", f"{SAID} 差", "role-marker-in-answer"),
        (f"{SAID} 好{SAID} 更好", f"{SAID} 差", "prompts-differ"),
        ("你好", f"{SAID} 差", "no-turns"),
        ("\n\nAssistant: 好", "\n\nAssistant: 差", "no-turns"),
        ("说明\n\nHuman: 问\n\nAssistant: 好", f"{SAID} 差", "text-before-first-turn"),
        ("\n\nHuman:\n\nAssistant: 好", f"{SAID} 差", "no-prompt"),
        (
            "\n\nHuman: a\n\nHuman: b\n\nAssistant: 好",
            "\n\nHuman: a\n\nHuman: b\n\nAssistant: 差",
            "roles-out-of-order",
        ),
        ("\n\nHuman: a\n\nAssistant:\n\nHuman: b\n\nAssistant: 好", f"{SAID} 差", "no-answer"),
    ],
)
def test_a_transcript_that_cannot_be_cut_is_refused(chosen: str, rejected: str, reason: str) -> None:
    with pytest.raises(BadRecord, match=f"^{reason}$"):
        HhRlhf("x").parse({"chosen": chosen, "rejected": rejected})


def test_what_may_be_meant_so_is_kept_and_counted(tmp_path: Path) -> None:
    file = write_lines(
        tmp_path / "named.json",  # that holds JSON Lines
        {**PAIR, "chosen": "是"},
        {**PAIR, "chosen": "差的是"},
        {**PAIR, "rejected": "差的\n\nHuman: 谢谢"},
        PAIR,
    )
    records, findings = read(TrlPairs(file))
    assert len(records) == 4
    assert findings == [("1", "one-character-answer"), ("2", "answer-begins-another"), ("3", "role-marker-in-answer")]


def test_equal_outputs_side_by_side_are_one(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", {"instruction": "问", "output": ["好的", "差的", "差的 "]})
    (record,), findings = read(RankedOutputs(file))
    assert [answer.content for answer in record.answers] == ["好的", "差的"]
    assert findings == [("1", "equal-answers-dropped")]


@pytest.mark.parametrize(("margin", "expected"), [(2, 2.0), (-0.5, -0.5), (None, None)])
def test_a_margin_is_kept(margin: Any, expected: float | None) -> None:
    assert TrlPairs("x").parse({**PAIR, "margin": margin}).margin == expected


@pytest.mark.parametrize("label", [1, 0, 1.0, 0.0, "true", "False", "1", "0"])
def test_a_label_may_be_a_number_or_a_text_that_says_it(label: Any, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", {"prompt": "问", "completion": "答的", "label": label})
    (record,), findings = read(UnpairedAnswers(file))
    assert record.is_good == (str(label).lower() in {"1", "1.0", "true"})
    assert findings == [("1", "label-not-boolean")]


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (None, "no-label"),
        ("", "no-label"),
        (0.5, "label-not-true-or-false"),
        (float("nan"), "label-not-true-or-false"),
        (-1, "label-not-true-or-false"),
        ("good", "label-not-true-or-false"),
        ([True], "label-not-true-or-false"),
    ],
)
def test_a_label_between_true_and_false_is_refused(label: Any, reason: str) -> None:
    with pytest.raises(BadRecord, match=f"^{reason}$"):
        UnpairedAnswers("x").parse({"prompt": "问", "completion": "答", "label": label})


def test_single_answers_that_are_none_are_refused() -> None:
    for record in ({"messages": [USER]}, {"prompt": "问", "completion": None}):
        with pytest.raises(BadRecord, match="^no-answer$"):
            UnpairedAnswers("x").parse({**record, "label": True})


def test_a_wrong_class_is_told_what_it_reads(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", PAIR)
    with pytest.raises(DataError, match=r"could be read as HhRlhf \(no-turns\).*transcripts"):
        read(HhRlhf(file))


JUDGED = {"prompt": "问", "completion": "答", "label": True}
ALPACA = {"instruction": "问", "input": "", "chosen": "好", "rejected": "坏"}
TAUGHT = {"instruction": "问", "input": "", "output": "答"}


@pytest.mark.parametrize(
    ("record", "wrong", "right"),
    [
        (PAIR, HhRlhf, "TrlPairs"),
        (PAIR, UnpairedAnswers, "TrlPairs"),
        (JUDGED, TrlPairs, "UnpairedAnswers"),
        (ALPACA, TrlPairs, "AlpacaPairs"),
        (TAUGHT, TrlPairs, ".*Belle.*"),
        (PAIR, Belle, "TrlPairs"),
    ],
)
def test_a_wrong_class_is_told_which_reads_the_file(
    record: dict[str, Any], wrong: type[Corpus], right: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"\. {right} reads the file: set class_path to it$"):
        read(wrong(write_lines(tmp_path / "a.jsonl", record)))


def as_chat(record: dict[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
    """Prompt and answers as TRL has them, texts without the marks of a transcript."""
    if isinstance(record["prompt"], list):
        prompt = [(m["role"], m["content"]) for m in record["prompt"]]
        return prompt, [record[side][0]["content"] for side in ("chosen", "rejected")]
    text = record["prompt"].removeprefix("\n\nHuman: ").removesuffix("\n\nAssistant:")
    return [("user", text)], [record[side].strip() for side in ("chosen", "rejected")]


GOLDEN = golden_json("preference", "formats")


@pytest.mark.parametrize("case", [case for n, case in enumerate(GOLDEN["extract_prompt"]) if n not in (0, 2)])
def test_the_prompt_in_both_sides_is_the_one_that_trl_extracts(case: dict[str, Any]) -> None:
    corpus = HhRlhf if isinstance(case["record"]["chosen"], str) else TrlPairs
    found = corpus("x").parse(case["record"])
    asked = [(message.role, message.content) for message in found.prompt]
    assert (asked, [answer.content for answer in found.answers]) == as_chat(case["extracted"])


def test_answers_that_begin_alike_leave_nothing_in_the_prompt_as_they_do_with_trl() -> None:
    record = GOLDEN["extract_prompt"][2]
    assert record["extracted"]["prompt"].endswith("你"), "the fault that is not copied"
    found = HhRlhf("x").parse(record["record"])
    assert [message.content for message in found.prompt] == ["你好"]
    assert [answer.content for answer in found.answers] == ["你好！", "你们好。"]


def test_a_pair_taken_apart_is_what_trl_makes_of_it() -> None:
    found = [UnpairedAnswers("x").parse(record) for record in GOLDEN["unpaired"]]
    pair = TrlPairs("x").parse({"prompt": "甲", "chosen": "乙", "rejected": "丙"})
    assert [(judged.prompt, judged.answer, judged.is_good) for judged in found] == [
        (pair.prompt, pair.answers[0], True),
        (pair.prompt, pair.answers[1], False),
    ]


TURNS = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1).filter(lambda text: text.strip())


@given(said=st.lists(TURNS, min_size=1, max_size=5).filter(lambda said: len(said) % 2), answers=st.tuples(TURNS, TURNS))
def test_a_transcript_is_cut_where_it_was_joined(said: list[str], answers: tuple[str, str]) -> None:
    chosen, rejected = (answer.strip() for answer in answers)
    if chosen == rejected:
        return
    joined = "".join(f"\n\n{'Assistant' if n % 2 else 'Human'}: {text}" for n, text in enumerate(said))
    found = HhRlhf("x").parse(
        {"chosen": f"{joined}\n\nAssistant: {chosen}", "rejected": f"{joined}\n\nAssistant: {rejected}"}
    )
    assert [message.content for message in found.prompt] == [text.strip() for text in said]
    assert [answer.content for answer in found.answers] == [chosen, rejected]


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-2, 2), st.floats(), st.sampled_from(["", "问", "assistant", "gpt"])
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "loss"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(layout=st.sampled_from([*PAIRS, *VERDICTS]), changed=st.dictionaries(st.integers(0, 6), JSON, min_size=1))
def test_whatever_stands_under_a_key_a_record_is_read_or_named(
    layout: tuple[Corpus, dict[str, Any]], changed: dict[int, Any]
) -> None:
    corpus, record = layout
    keys = [*record, "system", "history", "margin"]
    broken = {**record, **{keys[place % len(keys)]: value for place, value in changed.items()}}
    try:
        reading = corpus.read(json.dumps(broken).encode(), corpus.layout_of(broken))
    except BadRecord:
        return
    assert isinstance(reading.record, corpus.record_type)
    for talk in reading.record.conversations():
        assert [message.role for message in talk.messages[-2:]] == ["user", "assistant"]
        assert all(message.content == message.content.strip() != "" for message in talk.messages)
