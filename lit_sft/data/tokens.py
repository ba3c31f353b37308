"""Tokens of encoded records on the disk, so that none is tokenized twice.

A token and its label are one word of 32 bits: the id, and a bit that says whether the label is the id. Where the label
is another id (some formats train on an earlier end of turn), a second bit is set and the label follows the tokens.
A third bit marks the first token of a further sequence; what a record says of its sequences stands at the very end.
Words are appended to one file; a table says for each record where its words begin. Records can be added in any order,
by several processes, and a process that dies while it adds one leaves nothing but unused bytes.

Disks and file systems lose and change bytes, and training on wrong tokens looks like training. So each entry of the
table is sealed with a hash of itself and its place, without which it is not an entry, and its record is encoded again;
and it holds a checksum of the words, which is compared whenever they are read.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from lit_sft.conversation import IGNORE_INDEX
from lit_sft.data.cache import usable
from lit_sft.data.codes import Codes
from lit_sft.errors import DataError
from lit_sft.files import whole_file, write_text

if TYPE_CHECKING:
    from lit_sft.conversation import Example, Ids

OWN_LABEL = np.uint32(1 << 31)
OTHER_LABEL = np.uint32(1 << 30)
FURTHER = np.uint32(1 << 29)
ID = np.uint32((1 << 29) - 1)

ENTRY = np.dtype(
    [
        ("start", "<u8"),  # of the words, in words
        ("num_words", "<u4"),
        ("num_tokens", "<u4"),  # 0 if the record was left out
        ("num_supervised", "<u4"),
        ("remark", "<u4"),
        ("checksum", "<u4"),  # of num_tokens and the words
        ("seal", "<u4"),  # of all above and the number of the record; 0 where there is no entry
    ]
)

MAX_REMARKS = 256

MAX_DETAIL = 200
"""Characters of what is said about a record."""

MAX_DETAILS_BYTES = 1 << 20
"""The quarantine lists a thousand records of each reason; what is said of a million more is not kept."""


@dataclass(frozen=True)
class EncodedChunk:
    """What encoding made of some records, ready to be stored.

    `records`, `num_words`, `num_tokens`, `num_supervised` [N]; `remarks` N names: "" or what was cut, or, where
    there are no tokens, why the record was left out; `words` of all records, one after the other; `details` what else
    is to be said of some records, by their numbers.
    """

    records: NDArray[np.int64]
    num_words: NDArray[np.int64]
    num_tokens: NDArray[np.int64]
    num_supervised: NDArray[np.int64]
    remarks: list[str]
    words: NDArray[np.uint32]
    details: dict[int, str]

    @classmethod
    def of(
        cls,
        records: NDArray[Any],
        examples: Sequence[Example],
        remarks: list[str],
        details: dict[int, str] | None = None,
    ) -> EncodedChunk:
        """The words of all examples at once: an array of each would take longer than its tokens.

        Args:
            records: Numbers of the records [N].
            examples: What became of them [N]; without tokens where a record was left out.
            remarks: What is to be said of each [N].
            details: What else is to be said of some, by their numbers.
        """
        num_tokens = np.array([len(example) for example in examples], dtype=np.int64)
        ends = np.cumsum(num_tokens)
        ids = _joined([example.input_ids for example in examples])
        labels = _joined([example.labels for example in examples])
        is_own = labels == ids
        is_other = (labels != ids) & (labels != IGNORE_INDEX)
        words = ids.astype(np.uint32)
        words[is_own] |= OWN_LABEL
        words[is_other] |= OTHER_LABEL
        begins = zip((ends - num_tokens).tolist(), examples, strict=True)
        words[[begin + start for begin, example in begins for start in example.starts[1:]]] |= FURTHER
        num_others = _count(is_other, ends)
        is_judged = np.array([example.judgment is not None for example in examples], dtype=bool)
        judgments = np.array([e.judgment for e in examples if e.judgment is not None], dtype=np.float32)
        places = np.concatenate([ends.repeat(num_others), ends[is_judged]])  # np.insert keeps the order of equal ones
        words = np.insert(
            words, places, np.concatenate([labels[is_other].astype(np.uint32), judgments.view(np.uint32)])
        )
        num_words = num_tokens + num_others + is_judged
        num_supervised = _count(is_own, ends) + num_others
        return cls(records, num_words, num_tokens, num_supervised, remarks, words, details or {})


def _joined(rows: Sequence[Ids]) -> NDArray[np.int64]:
    return np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=sum(map(len, rows)))


def _count(flags: NDArray[np.bool_], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many are set in each of the stretches that end there [N]."""
    return np.diff(np.concatenate([[0], np.cumsum(flags)])[ends], prepend=0)


def _seals(entries: NDArray[Any], records: NDArray[Any]) -> NDArray[np.uint32]:
    """What seals each entry [N]: a hash, never 0, that another value in any field or another place would change."""
    fields = entries.view("<u4").reshape(len(entries), ENTRY.itemsize // 4)[:, :-1]
    mixed = (np.asarray(records).astype(np.uint32) + np.uint32(1)) * np.uint32(0x9E3779B1)
    for column in fields.T:  # the finalizer of MurmurHash3, a word at a time (Appleby 2011)
        mixed = (mixed ^ column) * np.uint32(0x85EBCA6B)
        mixed ^= mixed >> np.uint32(15)
    return np.asarray(mixed | np.uint32(1))


class Tokens(NamedTuple):
    """`input_ids` and `labels` [T] of a record, where its sequences begin, and what it says of them."""

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    starts: list[int]
    judgment: float | None


def from_words(words: NDArray[np.uint32], num_tokens: int) -> Tokens:
    """What was stored as words."""
    tokens, others = words[:num_tokens], words[num_tokens:]
    ids = (tokens & ID).astype(np.int64)
    labels = np.where(tokens & OWN_LABEL, ids, IGNORE_INDEX)
    judgment = None
    if len(others):
        is_other = (tokens & OTHER_LABEL) != 0
        num_others = int(is_other.sum())
        labels[is_other] = others[:num_others]
        if len(others) > num_others:
            judgment = float(others[num_others:].view(np.float32)[0])
    return Tokens(ids, labels, [0, *np.flatnonzero(tokens & FURTHER).tolist()], judgment)


def _are_sealed(entries: NDArray[Any], records: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(entries["seal"] == _seals(np.ascontiguousarray(entries), records))


def _sum_of(names: list[str]) -> int:
    return zlib.crc32(json.dumps(names).encode())


class TokenStore:
    """Tokens of the records of one corpus, as one tokenizer and format write them.

    Args:
        folder: Where they lie; made if it is not there.
        num_records: Records of the corpus.
    """

    def __init__(self, folder: Path, num_records: int) -> None:
        self.folder = folder
        self.num_records = num_records
        with usable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with self._lock():
                (folder / "words").touch()
                if not self._is_sound():
                    (folder / "remarks.json").unlink(missing_ok=True)
                    self._make_table()
                    self.__dict__.pop("table", None)  # the file that had the name is mapped
                self._forget_lost_words()
            os.utime(folder)  # as the cache's other folders: what is not used for long is removed

    def __reduce__(self) -> Any:
        return TokenStore, (self.folder, self.num_records)

    def is_ready(self, records: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether each record has been encoded."""
        return _are_sealed(self.table[records], records)

    def num_tokens(self, records: NDArray[Any]) -> NDArray[np.int64]:
        """Length of each encoded record; 0 for one that was left out."""
        return np.asarray(self.table["num_tokens"][records]).astype(np.int64)

    def read(self, record: int) -> Tokens:
        """An encoded record.

        Raises:
            DataError: If they are not those that were stored; they are encoded again in the next run.
        """
        entry = self.table[record]
        # Not memory-mapped: the pages of a large corpus would count as memory of the process.
        num_bytes = int(entry["num_words"]) * 4
        data = os.pread(self._descriptor, num_bytes, int(entry["start"]) * 4)
        num_tokens = int(entry["num_tokens"])
        if len(data) != num_bytes or zlib.crc32(data, num_tokens) != entry["checksum"]:
            with usable(self.folder), self._lock():
                self._write_entries(np.array([record]), np.zeros(1, dtype=ENTRY))
            raise DataError(
                f"the cache folder {self.folder} is damaged at record {record}, which is encoded again: start again. "
                "If that happens more than once, check the disk or name another place with data.cache"
            )
        return from_words(np.frombuffer(data, dtype="<u4"), num_tokens)

    def remark(self, record: int) -> str:
        """What was cut from an encoded record, or why it was left out; "" if all is well."""
        return self.remark_names[int(self.table["remark"][record])]

    @property
    def remark_names(self) -> list[str]:
        """Names by the numbers in the table."""
        file = self.folder / "remarks.json"
        return list(json.loads(file.read_text(encoding="utf-8"))["names"]) if file.exists() else [""]

    @property
    def details(self) -> dict[int, str]:
        """What else is to be said of some records, by their numbers."""
        file = self.folder / "details.jsonl"
        found: dict[int, str] = {}
        for line in file.read_text(encoding="utf-8", errors="replace").split("\n") if file.exists() else []:
            with suppress(ValueError, TypeError):  # the process that wrote it may have died
                record, detail = json.loads(line)
                found[int(record)] = str(detail)
        return found

    def append(self, encoded: EncodedChunk) -> None:
        """Keep encoded records, but those that are there already."""
        with usable(self.folder), self._lock():
            fresh = ~_are_sealed(self._read_entries(encoded.records), encoded.records)
            if not fresh.any():
                return
            words = encoded.words.astype("<u4").tobytes()
            with (self.folder / "words").open("ab") as file:
                file.write(bytes(-file.tell() % 4))  # what a process that died left unfinished
                start = file.tell() // 4
                file.write(words)
            ends = np.cumsum(encoded.num_words)
            entries = np.zeros(len(encoded.records), dtype=ENTRY)
            entries["start"] = start + ends - encoded.num_words
            for name in ("num_words", "num_tokens", "num_supervised"):
                entries[name] = getattr(encoded, name)
            entries["remark"] = self._remark_codes(encoded.remarks)
            stretches = zip((4 * (ends - encoded.num_words)).tolist(), (4 * ends).tolist(), strict=True)
            entries["checksum"] = [
                zlib.crc32(words[begin:end], num_tokens)
                for (begin, end), num_tokens in zip(stretches, encoded.num_tokens.tolist(), strict=True)
            ]
            entries["seal"] = _seals(entries, encoded.records)
            self._write_entries(encoded.records[fresh], entries[fresh])
            self._append_details(encoded.details)

    def _make_table(self) -> None:
        (self.folder / "words").touch()
        with whole_file(self._table_file) as partial, partial.open("wb") as file:
            # Zeros and not a hole: writing to the mapped table of a full disk would kill the process.
            for start in range(0, self.num_records, 1 << 16):
                file.write(bytes(min(1 << 16, self.num_records - start) * ENTRY.itemsize))

    def _forget_lost_words(self) -> None:
        """Encode again what a power failure took from the end of the words."""
        num_words = (self.folder / "words").stat().st_size // 4
        ends = self.table["start"] + self.table["num_words"]
        lost = np.flatnonzero((ends > num_words) & (self.table["seal"] != 0))
        self._write_entries(lost, np.zeros(len(lost), dtype=ENTRY))

    def _is_sound(self) -> bool:
        """Whether the table is whole, and every remark in it has a name: otherwise nothing in it means anything."""
        if not self._table_file.exists() or self._table_file.stat().st_size != self.num_records * ENTRY.itemsize:
            return False
        file = self.folder / "remarks.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"names": [""]}
            names, is_whole = content["names"], content.get("checksum", _sum_of([""])) == _sum_of(content["names"])
        except (ValueError, LookupError, TypeError, AttributeError):
            return False
        sealed = self.table["remark"][self.is_ready(np.arange(self.num_records))]
        return bool(is_whole and sealed.max(initial=0) < len(names))

    def _read_entries(self, records: NDArray[Any]) -> NDArray[Any]:
        """Entries as they are in the file: what another machine wrote may not have reached a mapped table."""
        with self._table_file.open("rb", buffering=0) as file:
            size = ENTRY.itemsize
            data = b"".join(os.pread(file.fileno(), size, record * size) for record in records.tolist())
        return np.frombuffer(data, dtype=ENTRY)

    def _write_entries(self, records: NDArray[Any], entries: NDArray[Any]) -> None:
        """Each by itself: a mapped page would take along what it holds of the entries of another machine."""
        with self._table_file.open("r+b", buffering=0) as file:
            for record, entry in zip(records.tolist(), entries, strict=True):
                os.pwrite(file.fileno(), entry.tobytes(), record * ENTRY.itemsize)

    def _remark_codes(self, remarks: list[str]) -> NDArray[np.uint32]:
        names = self.remark_names
        codes = Codes(MAX_REMARKS, names)
        found = np.array([codes.of(remark) for remark in remarks], dtype=np.uint32)
        if len(codes.names) > len(names):
            content = {"names": codes.names, "checksum": _sum_of(codes.names)}
            write_text(self.folder / "remarks.json", json.dumps(content))
        return found

    def _append_details(self, details: dict[int, str]) -> None:
        with (self.folder / "details.jsonl").open("a", encoding="utf-8") as file:
            for record, detail in details.items():
                if file.tell() < MAX_DETAILS_BYTES:
                    file.write(json.dumps([record, detail[:MAX_DETAIL]]) + "\n")

    def _lock(self) -> FileLock:
        return FileLock(self.folder / "lock")

    @property
    def _table_file(self) -> Path:
        return self.folder / "table"

    @cached_property
    def table(self) -> Any:
        """An entry for each record, as all processes of the machine see it."""
        return np.memmap(self._table_file, dtype=ENTRY, mode="r", shape=(self.num_records,))

    @cached_property
    def _descriptor(self) -> int:
        # Never closed: it lives as long as the process, and worker processes share it.
        return os.open(self.folder / "words", os.O_RDONLY)
