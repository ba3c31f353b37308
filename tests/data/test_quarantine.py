"""Bad records are counted and listed."""

import json
from pathlib import Path

import pytest

from lit_sft.corpora._base import Finding
from lit_sft.data.quarantine import MAX_LISTED, Quarantine
from lit_sft.errors import DataError

BROKEN = Finding("belle.json:3", "broken-json", '{"instruction', is_kept=False)
CRLF = Finding("belle.json:4", "crlf", "{", is_kept=True)


def test_skipped_and_repaired_records_are_counted_apart_and_listed(tmp_path: Path) -> None:
    quarantine = Quarantine()
    quarantine.report(BROKEN)
    quarantine.report(CRLF)
    quarantine.write(tmp_path / "run" / "quarantine.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["source"], line["reason"], line["is_kept"]) for line in lines[:2]] == [
        ("belle.json:3", "broken-json", False),
        ("belle.json:4", "crlf", True),
    ]
    assert lines[2] == {"counts": {"skipped": {"broken-json": 1}, "kept_after_repair": {"crlf": 1}}}
    assert str(quarantine) == "1 skipped: broken-json, 1 kept: crlf"


def test_all_are_counted_though_not_all_are_listed(tmp_path: Path) -> None:
    quarantine = Quarantine()
    for _ in range(MAX_LISTED + 5):
        quarantine.report(CRLF)
    quarantine.write(tmp_path / "quarantine.jsonl")
    lines = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert len(lines) == MAX_LISTED + 1
    assert quarantine.repaired["crlf"] == MAX_LISTED + 5


def test_on_request_the_first_lost_record_stops_the_run_and_a_repaired_one_does_not() -> None:
    quarantine = Quarantine(stop_at_first=True)
    quarantine.report(CRLF)
    with pytest.raises(DataError, match="belle.json:3: broken-json"):
        quarantine.report(BROKEN)
