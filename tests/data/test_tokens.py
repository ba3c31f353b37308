"""Tokens on the disk come back as they were, whoever wrote them and whatever was interrupted."""

from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_sft.conversation import IGNORE_INDEX, Example
from lit_sft.data.tokens import ENTRY, EncodedChunk, TokenStore, from_words
from lit_sft.errors import DataError

ids_and_labels = st.lists(
    st.integers(0, 300_000).flatmap(
        lambda token: st.tuples(st.just(token), st.sampled_from([IGNORE_INDEX, token, 2, 299_999]))
    ),
    max_size=40,
)


@given(st.lists(ids_and_labels, max_size=5))
def test_tokens_and_labels_come_back_as_they_were(records: list[list[tuple[int, int]]]) -> None:
    examples = [Example([token for token, _ in pairs], [label for _, label in pairs]) for pairs in records]
    found = EncodedChunk.of(np.arange(len(records)), examples, [""] * len(records))
    starts = np.cumsum(found.num_words) - found.num_words
    for place, (example, start) in enumerate(zip(examples, starts, strict=True)):
        words = found.words[start : start + found.num_words[place]]
        input_ids, labels, *_ = from_words(words, found.num_tokens[place])
        assert input_ids.tolist() == example.input_ids
        assert labels.tolist() == example.labels
        assert found.num_supervised[place] == np.count_nonzero(labels != IGNORE_INDEX)


def test_sequences_of_a_record_and_what_it_says_of_them_come_back(tmp_path: Path) -> None:
    examples = [
        Example([7, 8, 9, 7, 8], [IGNORE_INDEX, 8, 2, IGNORE_INDEX, 8], starts=[0, 3], judgment=0.25),
        Example([7, 8], [7, 8]),
        Example([5, 6, 5], [IGNORE_INDEX, 6, 3], judgment=0.0),
        Example([], []),
        Example([1, 2, 1, 2, 1], [1, 9, 1, 2, 9], starts=[0, 2, 4]),
    ]
    store = TokenStore(tmp_path / "store", len(examples))
    store.append(EncodedChunk.of(np.arange(len(examples)), examples, [""] * len(examples)))
    for record, example in enumerate(examples):
        found = store.read(record)
        assert (found.input_ids.tolist(), found.labels.tolist()) == (example.input_ids, example.labels)
        assert (found.starts, found.judgment) == (list(example.starts), example.judgment)
    assert store.num_tokens(np.arange(5)).tolist() == [5, 2, 3, 0, 5]


def test_a_conversation_takes_the_words_it_always_took() -> None:
    found = EncodedChunk.of(np.arange(2), [Example([7, 8, 9], [IGNORE_INDEX, 8, 2]), Example([5], [5])], ["", ""])
    own, other = 1 << 31, 1 << 30
    assert found.words.tolist() == [7, 8 | own, 9 | other, 2, 5 | own]


def encoded(records: list[int], remark: str = "") -> EncodedChunk:
    """Record i has i tokens."""
    examples = [Example([*range(10, 10 + i)], [*range(10, 10 + i)]) for i in records]
    return EncodedChunk.of(np.array(records), examples, [remark] * len(records))


def test_records_can_be_added_in_any_order_and_twice(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "store", 10)
    store.append(encoded([7, 2, 0], remark="reply-cut"))
    store.append(encoded([2, 3]))
    assert store.is_ready(np.arange(10)).tolist() == [i in {0, 2, 3, 7} for i in range(10)]
    for record in (0, 2, 3, 7):
        assert store.read(record)[0].tolist() == [*range(10, 10 + record)]
    assert store.num_tokens(np.array([7, 3])).tolist() == [7, 3]
    assert [store.remark(record) for record in (2, 3)] == ["reply-cut", ""]


def test_another_process_sees_what_was_added(tmp_path: Path) -> None:
    """Two processes add every record; each is kept once."""
    store = TokenStore(tmp_path / "store", 40)
    processes = [get_context("spawn").Process(target=add_all, args=(store,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert store.is_ready(np.arange(40)).all()
    assert [len(store.read(record)[0]) for record in range(40)] == [*range(40)]
    assert (tmp_path / "store" / "words").stat().st_size <= 2 * 4 * sum(range(40))


def add_all(store: TokenStore) -> None:
    for record in range(40):
        store.append(encoded([record]))


def test_what_a_dying_process_left_unfinished_is_passed_over(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "store", 4)
    store.append(encoded([2]))
    with (tmp_path / "store" / "words").open("ab") as file:
        file.write(b"\x01\x02\x03")  # three bytes of a word, and no entry in the table
    store.append(encoded([3]))
    again = TokenStore(tmp_path / "store", 4)
    assert again.is_ready(np.arange(4)).tolist() == [False, False, True, True]
    assert again.read(3)[0].tolist() == [10, 11, 12]


def test_the_table_costs_no_more_than_32_bytes_a_record(tmp_path: Path) -> None:
    TokenStore(tmp_path / "store", 1000)
    assert (tmp_path / "store" / "table").stat().st_size == 1000 * ENTRY.itemsize == 32_000


def test_words_that_a_power_failure_took_are_encoded_again(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "store", 4)
    store.append(encoded([2, 3]))
    with (tmp_path / "store" / "words").open("r+b") as file:
        file.truncate(4 * 4)
    again = TokenStore(tmp_path / "store", 4)
    assert again.is_ready(np.arange(4)).tolist() == [False, False, True, False]


def test_words_that_vanish_while_they_are_used_are_an_error(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "store", 4)
    store.append(encoded([2, 3]))
    with (tmp_path / "store" / "words").open("r+b") as file:
        file.truncate(4 * 4)
    with pytest.raises(DataError, match="is damaged at record 3"):
        store.read(3)


def test_tokens_that_changed_on_the_disk_are_refused_once_and_encoded_again(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "store", 4)
    store.append(encoded([2, 3]))
    words = tmp_path / "store" / "words"
    content = words.read_bytes()
    for damaged in (bytes(len(content)), content[:8] + b"\x01" + content[9:]):
        words.write_bytes(damaged)
        with pytest.raises(DataError, match="is damaged at record 3, which is encoded again: start again"):
            store.read(3)
        assert store.is_ready(np.arange(4)).tolist() == [False, False, True, False]
        store.append(encoded([3]))
        assert store.read(3)[0].tolist() == [10, 11, 12]
        words.write_bytes(content)
        store = TokenStore(tmp_path / "store", 4)
        store.append(encoded([3]))


@pytest.mark.parametrize("field", ENTRY.names or ())
def test_an_entry_that_changed_on_the_disk_is_none(tmp_path: Path, field: str) -> None:
    store = TokenStore(tmp_path / "store", 4)
    store.append(encoded([2, 3], remark="reply-cut"))
    table = np.memmap(tmp_path / "store" / "table", dtype=ENTRY, mode="r+")
    table[field][3] ^= 1
    table[1] = table[2]
    for found in (store, TokenStore(tmp_path / "store", 4)):
        assert found.is_ready(np.arange(4)).tolist() == [False, False, True, False]


def break_text(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:9])


def change_name(file: Path) -> None:
    file.write_text(file.read_text().replace("reply-cut", "reply-bad"))


@pytest.mark.parametrize(
    ("name", "damage"),
    [("table", break_text), ("remarks.json", break_text), ("remarks.json", change_name), ("remarks.json", Path.unlink)],
)
def test_a_store_whose_parts_do_not_belong_together_begins_anew(tmp_path: Path, name: str, damage: Any) -> None:
    TokenStore(tmp_path / "store", 4).append(encoded([2, 3], remark="reply-cut"))
    damage(tmp_path / "store" / name)
    store = TokenStore(tmp_path / "store", 4)
    assert not store.is_ready(np.arange(4)).any()
    store.append(encoded([2], remark="reply-cut"))
    assert store.remark(2) == "reply-cut"


def test_machines_that_do_not_see_each_others_pages_keep_what_each_has_written(tmp_path: Path) -> None:
    """On a network file system a mapped table is as old as the page; locks and files are as they are everywhere."""
    machines = [TokenStore(tmp_path / "store", 40) for _ in range(2)]
    for machine in machines:
        machine.table = np.array(machine.table)
    for record in range(0, 40, 2):
        machines[0].append(encoded([record]))
        machines[1].append(encoded([record, record + 1]))
    found = TokenStore(tmp_path / "store", 40)
    assert found.is_ready(np.arange(40)).all()
    assert [found.read(record)[0].tolist() for record in range(40)] == [[*range(10, 10 + n)] for n in range(40)]


def test_there_may_be_more_remarks_than_numbers_for_them(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "store", 400)
    for record in range(400):
        store.append(encoded([record], remark=f"reason {record}"))
    assert [store.remark(record) for record in (0, 253, 300, 399)] == ["reason 0", "reason 253", "other", "other"]


def test_what_is_said_of_a_record_is_kept_beside_its_reason(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "store", 4)
    for record, detail in ((2, "no system message, please"), (3, "x" * 1000)):
        store.append(EncodedChunk.of(np.array([record]), [Example([], [])], ["refused"], {record: detail}))
    with (tmp_path / "store" / "details.jsonl").open("a") as file:
        file.write('[1, "half')
    assert store.details == {2: "no system message, please", 3: "x" * 200}
    assert store.remark(2) == store.remark(3) == "refused"
