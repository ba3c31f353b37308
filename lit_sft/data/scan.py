"""What is in a corpus: every record is read once, before training, so that nothing bad in it comes as a surprise.

For each record a verdict (good, left out by a filter, or why it cannot be used), what was repaired in it, a fingerprint
of what is said, by which duplicates are found, and one of what the split keeps together.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_sft.bars import bar
from lit_sft.conversation import Conversation, Record
from lit_sft.corpora._base import UNUSED_KEY, Corpus, Finding, excerpt
from lit_sft.corpora._encodings import remedy_for
from lit_sft.data.cache import build_once, digest, usable
from lit_sft.data.cache_pruning import hold_cache
from lit_sft.data.codes import Codes
from lit_sft.data.deciding_code import code_digest
from lit_sft.data.other_layouts import classes_that_read
from lit_sft.data.records import Records, index_records
from lit_sft.data.workers import in_workers
from lit_sft.errors import BadRecord, DataError

CHUNK = 4096
"""Records that a process reads at once."""

GOOD, FILTERED = "", "left-out"
"""Verdicts that are not a reason for complaint."""

EMPTY_LINE = "empty-line"
"""Counted, but no bad record: there is none."""

ARRAYS = ("verdicts", "repairs", "fingerprints", "split_keys")

MAX_LISTED = 1000
"""Findings listed for each reason; a file with a million CRLF lines should not make a second one as large."""


@dataclass
class Scan:
    """What was found, one entry for each record of the corpus.

    `verdicts` [N] and `repairs` [N] are numbers: the place in `verdict_names`, and a bit for each of `repair_names`;
    `fingerprints` [N] are eight bytes of a hash of all that is said, `split_keys` [N] of that by which a record is held
    out (the same for conversations, the prompt of preferences); both are meaningless where the verdict is not good.
    """

    verdicts: NDArray[np.uint8]
    repairs: NDArray[np.uint32]
    fingerprints: NDArray[np.uint64]
    split_keys: NDArray[np.uint64]
    verdict_names: list[str]
    repair_names: list[str]
    groups: list[str]

    @cached_property
    def good(self) -> NDArray[np.uint32]:
        """Numbers of the records that can be used."""
        return np.flatnonzero(self.verdicts == self.verdict_names.index(GOOD)).astype(np.uint32)

    @property
    def is_usable(self) -> NDArray[np.bool_]:
        """Whether each record [N] can be used, were it not for a filter."""
        return np.isin(
            self.verdicts, [self.verdict_names.index(v) for v in (GOOD, FILTERED) if v in self.verdict_names]
        )

    @property
    def num_left_out(self) -> int:
        """Records that a filter left out."""
        return self._count(FILTERED)

    @property
    def bad(self) -> Counter[str]:
        """Records that cannot be used, by reason."""
        return Counter(
            {name: self._count(name) for name in self.verdict_names if name not in {GOOD, FILTERED, EMPTY_LINE}}
        )

    @property
    def num_repaired(self) -> int:
        """Records in which something was put right; one with a key that nothing reads is as it was."""
        bits = sum(1 << bit for bit, name in enumerate(self.repair_names) if not name.startswith(UNUSED_KEY))
        return int(np.count_nonzero(self.repairs & np.uint32(bits)))

    @property
    def findings(self) -> Counter[str]:
        """Records by what is wrong with them, or was before it was repaired."""
        repaired = {name: len(self.repaired_records(name)) for name in self.repair_names}
        return self.bad + Counter(repaired) + Counter({EMPTY_LINE: self._count(EMPTY_LINE)})

    def records_with(self, verdict: str) -> NDArray[np.int64]:
        """Numbers of the records with a verdict."""
        return np.flatnonzero(self.verdicts == self.verdict_names.index(verdict))

    def repaired_records(self, repair: str) -> NDArray[np.int64]:
        """Numbers of the usable records in which something was put right."""
        return np.flatnonzero(self.repairs & (1 << self.repair_names.index(repair)))

    def _count(self, verdict: str) -> int:
        return len(self.records_with(verdict)) if verdict in self.verdict_names else 0


class ScannedCorpus:
    """The usable records of a corpus.

    Args:
        name: How curves and tables call it.
        corpus: How a record is read.
        records: Its records.
        layouts: The layout of each file, as a place in `corpus.layouts`.
    """

    scan: Scan
    """What was found in it."""

    def __init__(self, name: str, corpus: Corpus, records: Records, layouts: list[int]) -> None:
        self.name = name
        self.corpus = corpus
        self.records = records
        self.layouts = layouts

    @property
    def fingerprint(self) -> str:
        """A name for the content of the files and the way they are read, wherever they lie."""
        contents = [file.sha256 for file in self.records.files]
        return digest(contents, type(self.corpus).__qualname__, sorted(self.corpus.options.items()))

    def record(self, number: int) -> Record:
        """What a usable record holds."""
        file, within = self.records.locate(number)
        data, group = self.records.files[file].read(within), self.records.files[file].group(within)
        found, _, kind = self.corpus.read(data, self.corpus.layouts[self.layouts[file]], group)
        assert found is not None
        return replace(found, source=self.records.source(number), category=kind or self.name)

    def finding(self, number: int, reason: str, *, is_kept: bool, detail: str = "") -> Finding:
        """A finding about a record."""
        return Finding(self.records.source(number), reason, excerpt(self.records.read(number)), is_kept, detail)

    def check(self, max_bad_fraction: float) -> None:
        """Refuse a corpus of which too much is bad: it is then the wrong file or class.

        A bad line counts once. A bad record of an array that is longer than any good one counts as often as the longest
        good record fits into it: where brackets cannot be matched, thousands of records may be hidden in a single one.

        Raises:
            DataError: With the reasons, how many records each has and where the first is.
        """
        bad = self.scan.bad
        num_hidden = self._num_hidden(list(bad))
        num_bad = bad.total() + num_hidden
        num_records = len(self.scan.good) + self.scan.num_left_out + num_bad
        if num_bad > max_bad_fraction * num_records:
            table = ", ".join(
                f"{count} {name} (first {self.records.source(int(self.scan.records_with(name)[0]))})"
                for name, count in bad.most_common()
            )
            hidden = f"; about {num_hidden} more are lost in records that are too long" if num_hidden else ""
            remedy = "Check the file and the class that reads it"
            if "not-utf-8" in bad:
                file, _ = self.records.locate(int(self.scan.records_with("not-utf-8")[0]))
                remedy = remedy_for(self.records.files[file].file)
            raise DataError(
                f"{num_bad} of {num_records} records of {self.corpus.path} are bad: {table}{hidden}. {remedy}, or "
                f"raise data.max_bad_fraction = {max_bad_fraction:g}"
            )

    def _num_hidden(self, bad: list[str]) -> int:
        """How many more records than one there must be in those that are bad."""
        places = [self.scan.records_with(name) for name in bad]
        sizes = self.records.sizes()
        longest = int(sizes[self.scan.is_usable].max(initial=1))
        return sum(int((np.maximum(sizes[numbers] // longest, 1) - 1).sum()) for numbers in places)


def scan_corpus(name: str, corpus: Corpus, cache: Path, num_workers: int) -> ScannedCorpus:
    """A corpus with all that is in it; read once for each content and way of reading, and kept.

    Raises:
        DataError: If a file is missing or empty, no record of it can be read, or a filter matches nothing.
    """
    hold_cache(cache)
    records = index_records(corpus, cache)
    layouts = [_layout_of(corpus, records, file) for file in range(len(records.files))]
    build = partial(_scan, name, corpus, records, layouts, num_workers)
    found = ScannedCorpus(name, corpus, records, layouts)
    folder = build_once(cache / "scans" / digest(found.fingerprint, code_digest(__name__, type(corpus))), build)
    with usable(folder, ValueError, TypeError, EOFError):
        found.scan = _load(folder)
    _check_usable(found)
    return found


def fingerprint(said: list[str]) -> int:
    """Eight bytes that depend on what is said, not on where."""
    hashed = hashlib.blake2b("\0".join(said).encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(hashed.digest(), "little")


def _layout_of(corpus: Corpus, records: Records, file: int) -> int:
    """The first recognizable record of a file decides."""
    reasons: set[str] = set()
    for within in range(len(records.files[file])):
        data = records.files[file].read(within)
        layout = corpus.layout_in(data)
        if layout is not None:
            return corpus.layouts.index(layout)
        try:
            corpus.read(data, None)
        except BadRecord as bad:
            reasons.add(bad.reason)
    raise corpus.unreadable(records.files[file].file, reasons, classes_that_read(records.files[file]))


class _Chunk(NamedTuple):
    verdicts: list[str]
    repairs: dict[int, list[str]]
    fingerprints: NDArray[np.uint64]
    split_keys: NDArray[np.uint64]
    groups: set[str]


def _scan_chunk(corpus: Corpus, records: Records, layouts: list[int], chunk: tuple[int, int]) -> _Chunk:
    verdicts: list[str] = []
    repairs: dict[int, list[str]] = {}
    fingerprints, split_keys = np.zeros((2, chunk[1] - chunk[0]), dtype=np.uint64)
    groups: set[str] = set()
    for number, (file, data, kind) in enumerate(records.read_range(*chunk), start=chunk[0]):
        try:
            found, repaired, group = corpus.read(data, corpus.layouts[layouts[file]], kind)
        except BadRecord as bad:
            verdicts.append(bad.reason)
        else:
            groups.add(group)
            verdicts.append(FILTERED if found is None else GOOD)
            if found is not None:
                place = number - chunk[0]
                fingerprints[place] = split_keys[place] = fingerprint(found.said())
                if not isinstance(found, Conversation):
                    split_keys[place] = fingerprint(found.held_out_by())
                if repaired:
                    repairs[number] = repaired
    return _Chunk(verdicts, repairs, fingerprints, split_keys, groups)


def _scan(name: str, corpus: Corpus, records: Records, layouts: list[int], num_workers: int, folder: Path) -> None:
    verdict_codes = Codes(256, [GOOD], always=(FILTERED, EMPTY_LINE))
    repair_codes = Codes(32)
    groups: set[str] = set()
    verdicts = np.zeros(len(records), dtype=np.uint8)
    repairs = np.zeros(len(records), dtype=np.uint32)
    fingerprints, split_keys = np.zeros((2, len(records)), dtype=np.uint64)
    chunks = [(start, min(start + CHUNK, len(records))) for start in range(0, len(records), CHUNK)]
    done = in_workers(partial(_scan_chunk, corpus, records, layouts), chunks, num_workers)
    with bar(desc=f"reading {name}", total=len(records), unit=" records", delay=1) as shown:
        for (start, stop), chunk in zip(chunks, done, strict=True):
            verdicts[start:stop] = [verdict_codes.of(name) for name in chunk.verdicts]
            fingerprints[start:stop] = chunk.fingerprints
            split_keys[start:stop] = chunk.split_keys
            groups |= chunk.groups
            for number, repaired in chunk.repairs.items():
                for repair in repaired:
                    repairs[number] |= 1 << repair_codes.of(repair)
            shown.update(stop - start)
    np.save(folder / "verdicts.npy", verdicts)
    np.save(folder / "repairs.npy", repairs)
    np.save(folder / "fingerprints.npy", fingerprints)
    np.save(folder / "split_keys.npy", split_keys)
    names: dict[str, Any] = {
        "verdict_names": verdict_codes.names,
        "repair_names": repair_codes.names,
        "groups": sorted(groups),
    }
    (folder / "names.json").write_text(json.dumps(names, ensure_ascii=False), encoding="utf-8")


def _load(folder: Path) -> Scan:
    arrays = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS)
    return Scan(*arrays, **json.loads((folder / "names.json").read_text(encoding="utf-8")))


def _check_usable(found: ScannedCorpus) -> None:
    """Every file has a usable record, every filter matches one."""
    corpus, records, scan = found.corpus, found.records, found.scan
    usable = scan.is_usable
    for file, start, stop in zip(records.files, records.bounds[:-1], records.bounds[1:], strict=True):
        if not usable[start:stop].any():
            names = {scan.verdict_names[code] for code in np.unique(scan.verdicts[start:stop])}
            raise corpus.unreadable(file.file, names, classes_that_read(file))
    corpus.check_groups(set(scan.groups))
    if not len(scan.good):
        raise DataError(f"the filters leave no record of {corpus.path}: {scan.num_left_out} left out")
