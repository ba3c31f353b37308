"""What the tests of all corpora need: write records, read them back."""

import json
import os
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lit_sft.conversation import Record
from lit_sft.corpora._base import Corpus, Finding
from lit_sft.data import cache_pruning
from lit_sft.data.scan import FILTERED, GOOD, scan_corpus


def said(record: Record) -> list[tuple[str, str]]:
    """(role, text) of each message, with the best answer where several were judged."""
    return [(message.role, message.content) for message in record.conversations()[0].messages]


def read(corpus: Corpus) -> tuple[list[Any], list[tuple[str, str]]]:
    """Records, and (place behind the file name, reason) of each finding."""
    conversations, findings = read_findings(corpus)
    return conversations, [(place(finding.source), finding.reason) for finding in findings]


def read_findings(corpus: Corpus) -> tuple[list[Any], list[Finding]]:
    """Records and findings in the order of the file, by the scan with which training begins."""
    with TemporaryDirectory() as folder:  # nothing is known from a reading before
        cache = Path(folder)
        try:
            return _scan(corpus, cache)
        finally:
            if cache in cache_pruning._held:
                os.close(cache_pruning._held.pop(cache))


def _scan(corpus: Corpus, cache: Path) -> tuple[list[Any], list[Finding]]:
    found = scan_corpus("Corpus", corpus, cache, num_workers=0)
    scan = found.scan
    verdicts = [name for name in scan.verdict_names if name not in {GOOD, FILTERED}]
    reasons = [(n, name, False) for name in verdicts for n in scan.records_with(name).tolist()]
    reasons += [(n, name, True) for name in scan.repair_names for n in scan.repaired_records(name).tolist()]
    findings = [found.finding(n, name, is_kept=is_kept) for n, name, is_kept in sorted(reasons, key=itemgetter(0))]
    return [found.record(number) for number in scan.good.tolist()], findings


def place(source: str) -> str:
    return source.rsplit(":", 1)[1]


def write_lines(file: Path, *records: Any) -> str:
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return str(file)
