"""Every record is read once, before training, and what is in it is known."""

import gzip
import hashlib
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reading import said, write_lines

from lit_sft.conversation import Conversation, Message
from lit_sft.corpora.belle import Belle
from lit_sft.corpora.firefly import Firefly
from lit_sft.corpora.safety_prompts import SafetyPrompts
from lit_sft.data import scan
from lit_sft.data.records import index_records
from lit_sft.data.scan import ScannedCorpus, scan_corpus
from lit_sft.errors import BadRecord, DataError

RECORDS = [{"instruction": f"问{i}", "input": "", "output": f"答{i}"} for i in range(30)]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)


def scanned(corpus: Any, tmp_path: Path, num_workers: int = 0) -> ScannedCorpus:
    return scan_corpus("Corpus", corpus, tmp_path / "cache", num_workers)


@pytest.mark.parametrize(
    "content",
    [
        LINES.encode(),
        LINES.rstrip("\n").encode(),
        gzip.compress(LINES.encode()),
        json.dumps(RECORDS).encode(),
        json.dumps(RECORDS, indent=1, ensure_ascii=False).encode(),
    ],
    ids=["lines", "no-last-line-break", "gzip", "array", "array-over-lines"],
)
def test_any_record_can_be_read_by_its_number_from_any_container(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "belle.json"
    file.write_bytes(content)
    found = scanned(Belle(str(file)), tmp_path)
    assert found.scan.good.tolist() == [*range(30)]
    assert [said(found.record(number)) for number in reversed(range(30))] == [
        [("user", record["instruction"]), ("assistant", record["output"])] for record in reversed(RECORDS)
    ]


CONTAINERS: dict[str, Callable[[list[Any]], str]] = {
    "lines": lambda records: "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records),
    "array": json.dumps,
    "array-over-lines": lambda records: json.dumps(records, indent=1, ensure_ascii=False),
}
TEXTS = st.text(st.characters(exclude_categories=("Cc", "Cs", "Z")), min_size=1) | st.sampled_from(
    ['"', "\\", "}, {", '"}, {"instruction": "', "[", "]}", "a\nb", "{\n}", '\\"']
)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=20), st.sampled_from(list(CONTAINERS)), st.booleans())
def test_a_scan_finds_every_record_in_order_with_its_texts_in_any_container(
    tmp_path_factory: pytest.TempPathFactory, talks: list[tuple[str, str]], container: str, is_compressed: bool
) -> None:
    folder = tmp_path_factory.getbasetemp() / "containers"  # one cache, which holds a file open
    folder.mkdir(exist_ok=True)
    content = CONTAINERS[container](
        [{"instruction": asked, "input": "", "output": answered} for asked, answered in talks]
    )
    data = content.encode()
    file = folder / f"{hashlib.sha256(data).hexdigest()}.{is_compressed}"
    file.write_bytes(gzip.compress(data) if is_compressed else data)
    found = scanned(Belle(str(file)), folder)
    assert found.scan.good.tolist() == [*range(len(talks))]
    assert [said(found.record(number)) for number in range(len(talks))] == [
        [("user", asked), ("assistant", answered)] for asked, answered in talks
    ]


def test_records_of_several_files_are_numbered_through(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(LINES, encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(RECORDS[:3]), encoding="utf-8")
    found = scanned(Belle(str(tmp_path / "[ab].json")), tmp_path)
    assert [found.record(number).source for number in (29, 30, 32)] == [
        f"{tmp_path}/a.json:30",
        f"{tmp_path}/b.json:1",
        f"{tmp_path}/b.json:1#3",
    ]
    in_order = [record["instruction"] for record in [*RECORDS, *RECORDS[:3]]]
    assert [found.record(number).conversations()[0].messages[0].content for number in range(33)] == in_order


def test_a_scenario_is_known_by_the_array_it_stands_in(tmp_path: Path) -> None:
    file = tmp_path / "safety.json"
    record = {"prompt": "p", "response": "r", "type": "X"}
    file.write_text(json.dumps({"A": [record], "B": [record, record]}))
    found = scanned(SafetyPrompts(str(file), scenarios=["B"]), tmp_path)
    assert found.scan.good.tolist() == [1, 2]
    assert found.scan.num_left_out == 1


def test_verdicts_repairs_and_filters_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "firefly.jsonl"
    good = '{"kind": "NLI", "input": "q", "target": "a"}'
    lines = [
        good,
        "{",
        good + "\r",
        "",
        good.replace("NLI", "Cot"),
        good.replace('"a"', '""'),
        good.replace("q", "\\u0000q"),
    ]
    file.write_text("\n".join(lines), newline="")
    found = scanned(Firefly(str(file), kinds=["NLI"]), tmp_path)
    assert found.scan.good.tolist() == [0, 2, 6]
    assert found.scan.bad == {"broken-json": 1, "no-answer": 1}
    assert found.scan.num_left_out == 1
    assert found.scan.repaired_records("crlf").tolist() == [2]
    assert found.scan.repaired_records("control-characters").tolist() == [6]
    assert found.scan.fingerprints[0] == found.scan.fingerprints[2] == found.scan.fingerprints[6]


class Talkative(Belle):
    """A corpus of a user, who writes a text of its own into every reason."""

    def parse(self, record: dict[str, Any]) -> Conversation:
        number = int(record["instruction"])
        if number % 2:
            raise BadRecord(f"number {number} is odd")
        self.repaired(f"number {number} is even")
        return super().parse(record)


def test_there_may_be_more_reasons_and_repairs_than_numbers_for_them(tmp_path: Path) -> None:
    lines = [{"instruction": f"{number}", "output": "a" * (1 + (number == 598))} for number in range(600)]
    file = write_lines(tmp_path / "belle.json", *lines)
    found = scanned(Talkative(file, max_characters=4), tmp_path)
    assert len(found.scan.good) == 299
    assert found.scan.num_left_out == 1
    assert found.scan.bad.total() == 300
    assert found.scan.bad["number 1 is odd"] == 1
    assert found.scan.bad["other"] > 40
    assert found.scan.repaired_records("number 0 is even").tolist() == [0]
    assert len(found.scan.repaired_records("other")) > 200


@pytest.mark.parametrize("num_workers", [1, 2])
def test_worker_processes_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int) -> None:
    monkeypatch.setattr(scan, "CHUNK", 7)
    file = tmp_path / "belle.json"
    file.write_text(LINES + "{\n" + LINES, encoding="utf-8")
    alone = scanned(Belle(str(file)), tmp_path).scan
    shutil.rmtree(tmp_path / "cache")
    together = scanned(Belle(str(file)), tmp_path, num_workers).scan
    for name in ("verdicts", "repairs", "fingerprints"):
        assert np.array_equal(getattr(alone, name), getattr(together, name))
    assert alone.verdict_names == together.verdict_names == ["", "broken-json"]


def test_a_corpus_is_read_once_wherever_its_files_are_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "belle.json"
    file.write_text(LINES, encoding="utf-8")
    first = scanned(Belle(str(file)), tmp_path)
    moved = file.rename(tmp_path / "moved.json")
    monkeypatch.setattr(scan, "_scan", lambda *args: pytest.fail("read again"))
    again = scanned(Belle(str(moved)), tmp_path)
    assert again.fingerprint == first.fingerprint
    assert again.record(3).source == f"{moved}:4"


def test_the_index_takes_eight_bytes_a_record(tmp_path: Path) -> None:
    file = tmp_path / "belle.json"
    file.write_text(LINES, encoding="utf-8")
    index_records(Belle(str(file)), tmp_path / "cache")
    (offsets,) = (tmp_path / "cache").glob("records/*/offsets.npy")
    assert len(np.load(offsets)) == 31
    assert np.load(offsets).itemsize == 8


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ([], {}, "is empty"),
        (["{"], {}, r"could be read as Belle \(broken-json\). Expected one JSON object"),
        (['{"kind": "x", "text": "y"}'], {}, r"could be read as Belle \(unknown-layout\)"),
        (
            ['{"instruction": "q", "output": "a"}'] * 4,
            {"min_characters": 100},
            "the filters leave no record of .*: 4 left",
        ),
    ],
)
def test_a_corpus_without_a_usable_record_is_an_error(
    tmp_path: Path, lines: list[str], options: dict[str, Any], message: str
) -> None:
    file = tmp_path / "belle.json"
    file.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(DataError, match=message):
        scanned(Belle(str(file), **options), tmp_path)
    with pytest.raises(DataError, match=message):  # what failed is not kept as done
        scanned(Belle(str(file), **options), tmp_path)


def test_utf_16_is_called_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "belle.json"
    file.write_text('{"instruction": "q", "output": "a"}\n', encoding="utf-16")
    with pytest.raises(DataError, match=r"belle.json is UTF-16. Convert it: iconv -f UTF-16 -t UTF-8"):
        scanned(Belle(str(file)), tmp_path)


def test_a_kind_that_does_not_exist_is_an_error_naming_those_that_do(tmp_path: Path) -> None:
    file = tmp_path / "firefly.jsonl"
    file.write_text('{"kind": "NLI", "input": "q", "target": "a"}\n')
    with pytest.raises(DataError, match="has kind Cot. Found: NLI"):
        scanned(Firefly(str(file), kinds=["Cot"]), tmp_path)


def test_a_corpus_may_have_more_files_than_a_process_may_hold_open(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    num_open = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 100
    for number in range(300):
        (tmp_path / f"{number:03d}.json").write_text('{"instruction": "q", "output": "a"}\n')
    resource.setrlimit(resource.RLIMIT_NOFILE, (num_open + 200, hard))
    try:
        found = scanned(Belle(str(tmp_path / "*.json")), tmp_path)
        assert len({found.record(number).source for number in range(300)}) == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_read_again(tmp_path: Path) -> None:
    file, other = tmp_path / "belle.json", tmp_path / "other.json"
    file.write_text(LINES, encoding="utf-8")
    before = scanned(Belle(str(file)), tmp_path)
    other.write_text(LINES.replace("问", "答"), encoding="utf-8")
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)
    after = scanned(Belle(str(file)), tmp_path)
    assert after.fingerprint != before.fingerprint
    assert after.record(0).conversations()[0].messages[0].content == "答0"


def test_who_is_meant_is_a_part_of_what_is_said() -> None:
    """ChatGLM3 names the tool that a message is for."""
    called = [Conversation([Message("user", "q"), Message("assistant", "a", name=name)]) for name in ("", "add", "sub")]
    assert len({scan.fingerprint(conversation.said()) for conversation in called}) == 3


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_bad_line_counts_once_however_long_it_is(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "belle.json"
    file.write_bytes(compress(b'{"instruction": "' + b"x" * (2 << 20) + b"\n" + LINES.encode()))
    scanned(Belle(str(file)), tmp_path).check(max_bad_fraction=0.04)


def test_what_hides_in_an_array_that_cannot_be_split_counts_by_its_length(tmp_path: Path) -> None:
    file = tmp_path / "belle.json"
    text = json.dumps(RECORDS)
    file.write_text(text[:-1] + ", [" + text[1:-1].replace('"instruction"', '"other"') + "]]")
    reasons = r"27 of 57 records .* are bad: 1 not-an-object .*; about 26 more are lost"
    with pytest.raises(DataError, match=reasons):
        scanned(Belle(str(file)), tmp_path).check(max_bad_fraction=0.4)


def test_deep_nesting_costs_only_its_record(tmp_path: Path) -> None:
    good = '{"instruction": "q", "output": "a"}\n'
    nested = '{"instruction": "q", "output": "a", "z": ' + "[" * 900 + '"\\u0001"' + "]" * 900 + "}\n"
    file = tmp_path / "belle.json"
    file.write_text(good + nested + good)
    found = scanned(Belle(str(file)), tmp_path)
    assert found.scan.good.tolist() == [0, 2]
    assert found.scan.bad == {"broken-json": 1}
