"""Tokens of encoded records on the disk, so that none is tokenized twice.

A token and its label are one word of 32 bits: the id, and a bit that says whether the label is the id. Where the label
is another id (some formats train on an earlier end of turn), a second bit is set and the label follows the tokens.
Words are appended to one file; a table says for each record where its words begin. Records can be added in any order,
by several processes, and a process that dies while it adds one leaves nothing but unused bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from lit_sft.conversation import IGNORE_INDEX
from lit_sft.data.cache import usable
from lit_sft.errors import DataError
from lit_sft.files import whole_file, write_text

if TYPE_CHECKING:
    from lit_sft.conversation import Example, Ids

OWN_LABEL = np.uint32(1 << 31)
OTHER_LABEL = np.uint32(1 << 30)
ID = np.uint32((1 << 30) - 1)

ENTRY = np.dtype(
    [
        ("start", "<u8"),  # of the words, in words
        ("num_words", "<u4"),
        ("num_tokens", "<u4"),  # 0 if the record was left out
        ("num_supervised", "<u4"),
        ("remark", "u1"),
        ("is_ready", "u1"),  # written last
        ("unused", "<u2"),
    ]
)


@dataclass(frozen=True)
class EncodedRecords:
    """What encoding made of some records, ready to be stored.

    `records`, `num_words`, `num_tokens`, `num_supervised` [N]; `remarks` N names: "" or what was cut, or, where
    there are no tokens, why the record was left out; `words` of all records, one after the other.
    """

    records: NDArray[np.int64]
    num_words: NDArray[np.int64]
    num_tokens: NDArray[np.int64]
    num_supervised: NDArray[np.int64]
    remarks: list[str]
    words: NDArray[np.uint32]

    @classmethod
    def of(cls, records: NDArray[Any], examples: Sequence[Example], remarks: list[str]) -> EncodedRecords:
        """The words of all examples at once: an array of each would take longer than its tokens.

        Args:
            records: Numbers of the records [N].
            examples: What became of them [N]; without tokens where a record was left out.
            remarks: What is to be said of each [N].
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
        num_others = _count(is_other, ends)
        words = np.insert(words, ends.repeat(num_others), labels[is_other])
        num_supervised = _count(is_own, ends) + num_others
        return cls(records, num_tokens + num_others, num_tokens, num_supervised, remarks, words)


def _joined(rows: Sequence[Ids]) -> NDArray[np.int64]:
    return np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=sum(map(len, rows)))


def _count(flags: NDArray[np.bool_], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many are set in each of the stretches that end there [N]."""
    return np.diff(np.concatenate([[0], np.cumsum(flags)])[ends], prepend=0)


def from_words(words: NDArray[np.uint32], num_tokens: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`input_ids` and `labels` [T]."""
    tokens, others = words[:num_tokens], words[num_tokens:]
    ids = (tokens & ID).astype(np.int64)
    labels = np.where(tokens & OWN_LABEL, ids, IGNORE_INDEX)
    if len(others):
        labels[(tokens & OTHER_LABEL) != 0] = others
    return ids, labels


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
                if not self._table_file.exists():
                    self._make_table()
                self._forget_lost_words()

    def __reduce__(self) -> Any:
        return TokenStore, (self.folder, self.num_records)

    def is_ready(self, records: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether each record has been encoded."""
        return np.asarray(self.table["is_ready"][records] != 0)

    def num_tokens(self, records: NDArray[Any]) -> NDArray[np.int64]:
        """Length of each encoded record; 0 for one that was left out."""
        return np.asarray(self.table["num_tokens"][records]).astype(np.int64)

    def read(self, record: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`input_ids` and `labels` [T] of an encoded record."""
        entry = self.table[record]
        # Not memory-mapped: the pages of a large corpus would count as memory of the process.
        num_bytes = int(entry["num_words"]) * 4
        data = os.pread(self._descriptor, num_bytes, int(entry["start"]) * 4)
        if len(data) != num_bytes:
            raise DataError(f"the cache folder {self.folder} is damaged; delete it")
        return from_words(np.frombuffer(data, dtype="<u4"), int(entry["num_tokens"]))

    def remark(self, record: int) -> str:
        """What was cut from an encoded record, or why it was left out; "" if all is well."""
        return self.remark_names[int(self.table["remark"][record])]

    @property
    def remark_names(self) -> list[str]:
        """Names by the numbers in the table."""
        file = self.folder / "remarks.json"
        return [str(name) for name in json.loads(file.read_text(encoding="utf-8"))] if file.exists() else [""]

    def append(self, encoded: EncodedRecords) -> None:
        """Keep encoded records, but those that are there already."""
        with usable(self.folder), self._lock():
            fresh = ~self.is_ready(encoded.records)
            if not fresh.any():
                return
            with (self.folder / "words").open("ab") as file:
                file.write(bytes(-file.tell() % 4))  # what a process that died left unfinished
                start = file.tell() // 4
                file.write(encoded.words.astype("<u4").tobytes())
            starts = start + np.concatenate([[0], np.cumsum(encoded.num_words)[:-1]])
            records = encoded.records[fresh]
            self.table["start"][records] = starts[fresh]
            for name in ("num_words", "num_tokens", "num_supervised"):
                self.table[name][records] = getattr(encoded, name)[fresh]
            self.table["remark"][records] = self._remark_codes(encoded.remarks)[fresh]
            self.table["is_ready"][records] = 1

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
        if len(ends) and ends.max() > num_words:
            self.table["is_ready"][ends > num_words] = 0

    def _remark_codes(self, remarks: list[str]) -> NDArray[np.uint8]:
        names = self.remark_names
        codes = {name: code for code, name in enumerate(names)}
        found = np.array([codes.setdefault(remark, len(codes)) for remark in remarks], dtype=np.uint8)
        if len(codes) > len(names):
            write_text(self.folder / "remarks.json", json.dumps(list(codes)))
        return found

    def _lock(self) -> FileLock:
        return FileLock(self.folder / "lock")

    @property
    def _table_file(self) -> Path:
        return self.folder / "table"

    @cached_property
    def table(self) -> Any:
        """An entry for each record, shared by all processes."""
        return np.memmap(self._table_file, dtype=ENTRY, mode="r+", shape=(self.num_records,))

    @cached_property
    def _descriptor(self) -> int:
        # Never closed: it lives as long as the process, and worker processes share it.
        return os.open(self.folder / "words", os.O_RDONLY)
