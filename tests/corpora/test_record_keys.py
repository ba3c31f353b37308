"""Every key of a record is read, or known to say nothing of the conversation, or counted."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reading import read, said, write_lines

from lit_sft.corpora._base import Corpus
from lit_sft.corpora._fields import LOSS_KEYS, SAYS_NOTHING
from lit_sft.corpora.alpaca import Alpaca
from lit_sft.corpora.belle import Belle
from lit_sft.corpora.cvalues_prompts import CValuesPrompts
from lit_sft.corpora.firefly import Firefly
from lit_sft.corpora.jsonl_chat import JsonlChat
from lit_sft.corpora.moss_rlhf_prompts import MossRlhfPrompts
from lit_sft.corpora.moss_sft import MossSft
from lit_sft.corpora.prompt_records import PromptRecords
from lit_sft.corpora.safety_prompts import SafetyPrompts
from lit_sft.errors import BadRecord

TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
LAYOUTS: list[tuple[Corpus, dict[str, Any]]] = [
    (Alpaca("x"), {"instruction": "q", "output": "a"}),
    (Belle("x"), {"instruction": "q", "output": "a"}),
    (Belle("x"), {"instruction": "q", "response": "a"}),
    (Belle("x"), {"input": "q", "target": "a"}),
    (Belle("x"), {"conversations": [{"from": "human", "value": "q"}, {"from": "assistant", "value": "a"}]}),
    (JsonlChat("x"), {"messages": TALK}),
    (JsonlChat("x"), {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
    (Firefly("x"), {"kind": "NLI", "input": "q", "target": "a"}),
    (SafetyPrompts("x"), {"prompt": "q", "response": "a"}),
    (MossSft("x"), {"conversation": [{"human": "q", "assistant": "a"}]}),
]
QUESTIONS: list[tuple[Corpus, dict[str, Any]]] = [
    (PromptRecords("x"), {"prompt": "q"}),
    (PromptRecords("x"), {"query": "q", "reference": "a"}),
    (PromptRecords("x"), {"instruction": "q", "input": "i", "output": "a"}),
    (PromptRecords("x"), {"messages": TALK[:1]}),
    (PromptRecords("x"), {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
    (CValuesPrompts("x"), {"id_": 1, "prompt": "q", "domain_en": "law", "domain_zh": "法律"}),
    (MossRlhfPrompts("x"), {"utterances": ["q", "a", "q"]}),
]
"""What asks for an answer, which it may hold to compare with."""
TEXTS = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1)
VALUES = st.one_of(st.booleans(), st.integers(), TEXTS, st.lists(TEXTS, min_size=1))
KEYS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["history", "system", "loss", "weight", "tools", "response", "input", "query", "answer", "category"]
    ),
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(key=KEYS, value=VALUES, layout=st.sampled_from([*LAYOUTS, *QUESTIONS]))
@example(key="input", value=0, layout=(Belle("x"), {"instruction": "q", "output": "a"}))
@example(key="input", value=False, layout=(Alpaca("x"), {"instruction": "q", "output": "a"}))
def test_no_key_that_is_added_is_lost_without_a_count(
    key: str, value: Any, layout: tuple[Corpus, dict[str, Any]]
) -> None:
    corpus, record = layout
    if key in record or key in SAYS_NOTHING or (isinstance(value, str) and not value.strip()):
        return
    assert is_accounted_for(corpus, record, {**record, key: value})


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(key=KEYS, value=VALUES, layout=st.sampled_from([*LAYOUTS, *QUESTIONS]))
def test_no_key_that_is_added_to_a_message_is_lost_without_a_count(
    key: str, value: Any, layout: tuple[Corpus, dict[str, Any]]
) -> None:
    corpus, record = layout
    place = next((name for name, turns in record.items() if isinstance(turns, list) and isinstance(turns[0], dict)), "")
    if not place or key in record[place][0] or key in SAYS_NOTHING or (isinstance(value, str) and not value.strip()):
        return
    first, *others = record[place]
    assert is_accounted_for(corpus, record, {**record, place: [{**first, key: value}, *others]})


def is_accounted_for(corpus: Corpus, record: dict[str, Any], changed: dict[str, Any]) -> bool:
    """Whether what was added to a record is refused, counted, seen in the result, or goes without saying."""
    try:
        data = orjson.dumps(changed)
    except (TypeError, orjson.JSONEncodeError):
        return True  # no JSON text says it
    plain = corpus.read(orjson.dumps(record), corpus.layout_of(record)).record
    try:
        reading = corpus.read(data, corpus.layout_of(changed))
    except BadRecord:
        return True
    is_reported = any(reason.startswith("unused-key ") for reason in reading.repairs)
    return is_reported or reading.record != plain or _says_as_before(changed)


def _says_as_before(record: dict[str, Any]) -> bool:
    """Whether a mark of loss says what is so without it: nothing is learned of a question, everything of an answer."""
    turns = [turn for turns in record.values() if isinstance(turns, list) for turn in turns if isinstance(turn, dict)]
    marked = [(part, part[key]) for part in (record, *turns) for key in LOSS_KEYS if key in part]
    return any(value == 1 or (value == 0 and ("role" in part or "from" in part)) for part, value in marked)


@pytest.mark.parametrize(("corpus", "record"), LAYOUTS, ids=lambda value: type(value).__name__)
def test_a_system_message_stands_before_every_layout(corpus: Corpus, record: dict[str, Any]) -> None:
    reading = corpus.read(orjson.dumps({**record, "system": "s"}), corpus.layout_of(record))
    assert said(reading.record) == [("system", "s"), ("user", "q"), ("assistant", "a")]  # type: ignore[arg-type]
    assert reading.repairs == []


def test_the_history_of_an_alpaca_record_comes_first(tmp_path: Path) -> None:
    file = write_lines(
        tmp_path / "a.jsonl",
        {"instruction": "q", "output": "a", "system": "s", "history": [["q0", "a0"]]},
        {"instruction": "q", "output": "a", "history": [["q0", ""]]},
        {"instruction": "q", "output": "a", "history": "q0"},
    )
    conversations, findings = read(Belle(file))
    assert [text for _, text in said(conversations[0])] == ["s", "q0", "a0", "q", "a"]
    assert findings == [("2", "no-answer"), ("3", "history-not-rounds")]


@pytest.mark.parametrize("mark", [{key: 0} for key in LOSS_KEYS])
def test_an_answer_may_be_marked_as_without_loss(mark: dict[str, Any], tmp_path: Path) -> None:
    (user, answer) = TALK
    file = write_lines(
        tmp_path / "a.jsonl",
        {"messages": [user, {**answer, **mark}, user, {**answer, "loss": True}]},
        {"messages": [user, {**answer, **mark}]},
        {"messages": TALK, **mark},
        {"messages": [user, {**answer, "weight": 0.5}]},
    )
    conversations, findings = read(JsonlChat(file))
    assert [message.is_supervised for message in conversations[0].messages] == [True, False, True, True]
    assert findings == [
        ("2", "no-supervised-answer"),
        ("3", "no-supervised-answer"),
        ("4", "unused-key messages.weight"),
    ]


def test_a_strict_corpus_refuses_keys_that_it_does_not_use(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", {"messages": TALK}, {"messages": TALK, "id": 1, "tools": [{"x": 1}]})
    assert read(JsonlChat(file))[1] == [("2", "unused-key tools")]
    assert read(JsonlChat(file, unused_keys="refuse")) == (read(JsonlChat(file))[0][:1], [("2", "unused-key tools")])
