"""One wrong character in an array of records costs the record in which it stands."""

import json
import time
from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_sft.corpora._splitting import MAX_RECORD_BYTES, Element, Splitter

RECORDS = [
    {"instruction": f'问题 {n}: say {{[ "{n}" ]}}, {{"instruction":', "input": "", "output": f"answer {n}"}
    for n in range(12)
]
TALKS = [
    {"id": f"{n}", "conversations": [{"from": who, "value": f"{who} {n}"} for who in ("human", "assistant") * 2]}
    for n in range(12)
]


def elements(data: bytes, level: int = 1, size: int = 1 << 16) -> list[Element]:
    return list(Splitter(level).split(data[start : start + size] for start in range(0, len(data), size)))


def whole(found: list[Element]) -> list[object]:
    """Those that are JSON objects."""
    kept = []
    for element in found:
        try:
            kept.append(json.loads(element.data))
        except ValueError:
            continue
    return [value for value in kept if isinstance(value, dict)]


def in_one_line(records: Sequence[Mapping[str, object]]) -> str:
    return json.dumps(records, ensure_ascii=False)


def over_lines(records: Sequence[Mapping[str, object]]) -> str:
    return json.dumps(records, ensure_ascii=False, indent=1)


@pytest.mark.parametrize("write", [in_one_line, over_lines])
@pytest.mark.parametrize("records", [RECORDS, TALKS], ids=["instructions", "talks"])
@pytest.mark.parametrize("stray", ['"', "[", "{", "]", "}", ",", "\\", ":", "x"])
def test_a_stray_character_costs_one_record_wherever_it_stands(
    write: Callable[[Sequence[Mapping[str, object]]], str], records: Sequence[Mapping[str, object]], stray: str
) -> None:
    text = write(records)
    start = text.index("human 6" if records is TALKS else "问题 6") - 40
    for place in range(start, start + len(text) // len(records), 5):
        found = elements((text[:place] + stray + text[place:]).encode())
        kept = whole(found)
        lost = [record for record in records if record not in kept]
        assert len(lost) <= 2, (place, text[place - 20 : place] + stray + text[place : place + 20])
        assert len(found) <= len(records) + 6


@given(st.integers(0, 500), st.sampled_from('"[{]},:\\'), st.booleans())
def test_what_is_found_does_not_depend_on_where_a_chunk_ends(place: int, stray: str, is_pretty: bool) -> None:
    text = (over_lines if is_pretty else in_one_line)(RECORDS[:6])
    data = (text[:place] + stray + text[place:]).encode()
    assert elements(data, size=11) == elements(data)


def test_a_stray_bracket_before_a_record_of_an_array_over_lines_costs_that_record() -> None:
    text = over_lines(RECORDS)
    place = text.index("{", text.index("问题 6"))
    place = text.rindex(" {\n", 0, place)
    found = elements((text[:place] + "[" + text[place:]).encode())
    assert [record for record in RECORDS if record not in whole(found)] == [RECORDS[6]]


def test_json_lines_behind_an_object_of_arrays_are_records() -> None:
    grouped = json.dumps({"A": RECORDS[:3], "B": RECORDS[3:5]}, ensure_ascii=False)
    lines = "".join("\n" + json.dumps(record, ensure_ascii=False) for record in RECORDS[5:])
    found = elements((grouped + lines).encode(), level=2)
    assert whole(found) == RECORDS
    assert [element.group for element in found] == ["A"] * 3 + ["B"] * 2 + [""] * 7


def test_a_stray_quotation_mark_does_not_reach_the_next_array_of_an_object() -> None:
    text = json.dumps({"A": RECORDS[:3], "B": RECORDS[3:]}, ensure_ascii=False).replace("answer 2", 'answer "2')
    found = elements(text.encode(), level=2)
    assert whole(found) == [record for record in RECORDS if record is not RECORDS[2]]
    assert [element.group for element in found] == ["A"] * 3 + ["B"] * 9


def test_records_in_lists_are_not_taken_for_records() -> None:
    lists = json.dumps([[{"role": "user"}, {"role": "assistant"}]] * 3)
    assert [json.loads(element.data) for element in elements(lists.encode())] == json.loads(lists)


def test_of_a_record_without_end_the_length_is_known() -> None:
    text = in_one_line(RECORDS[:1])[:-1] + ', {"instruction": "' + "x" * 3 * MAX_RECORD_BYTES
    last = elements(text.encode())[-1]
    assert last.num_bytes > 3 * MAX_RECORD_BYTES
    assert len(last.data) <= MAX_RECORD_BYTES + (1 << 17)


@pytest.mark.parametrize("data", [b"[" * 400_000 + b"}" * 400_000, b"}" + b" " * 800_000, b'[{"a":' * 100_000])
def test_brackets_and_blanks_take_time_in_proportion(data: bytes) -> None:
    start = time.process_time()  # of this process alone, whatever else the machine does
    elements(data)
    assert time.process_time() - start < 5
