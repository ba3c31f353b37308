"""Records -> stored tokens, each once: at once where they are needed now, else in the background of training."""

from __future__ import annotations

import atexit
import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_sft.bars import bar
from lit_sft.conversation import Example, PromptFormat, TextInterface
from lit_sft.data.cache import digest
from lit_sft.data.deciding_code import code_digest
from lit_sft.data.scan import ScannedCorpus
from lit_sft.data.tokens import EncodedChunk, TokenStore
from lit_sft.data.workers import in_workers
from lit_sft.errors import BadRecord, DataError

CHUNK = 256
"""Records that a process encodes at once."""

POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Encoding(ABC):
    """How records become examples: what a data module subclasses, with its own options as further fields.

    Args:
        prompt_format: The family's way to write a conversation.
        tokenizer: The family's tokenizer.
        max_length: Tokens of an example at most.
    """

    prompt_format: PromptFormat
    tokenizer: Any
    max_length: int

    @abstractmethod
    def encode_record(self, record: Any) -> Example:
        """The example that a usable record becomes: of the kind that the corpora of the data module yield.

        Raises:
            BadRecord: If it does not fit.
        """

    def options(self) -> dict[str, Any]:
        """What examples depend on, beside format and tokenizer."""
        names = [field.name for field in fields(self) if field.name not in {"prompt_format", "tokenizer"}]
        return {name: getattr(self, name) for name in names}

    def encode(self, corpus: ScannedCorpus, records: NDArray[Any]) -> EncodedChunk:
        """Tokens of usable records; one that does not fit is left out, with the reason."""
        examples: list[Example] = []
        remarks: list[str] = []
        details: dict[int, str] = {}
        for record in records.tolist():
            try:
                found = corpus.record(record)
            except BadRecord:
                raise DataError(f"{corpus.records.source(record)} changed while it was used. Start again") from None
            try:
                example = self.encode_record(found)
            except BadRecord as bad:
                examples.append(Example([], []))
                remarks.append(bad.reason)
                if bad.detail:
                    details[record] = bad.detail
                continue
            except Exception as error:
                error.add_note(f"in the record at {found.source}")
                raise
            examples.append(example)
            remarks.append(example.truncation)
        return EncodedChunk.of(records, examples, remarks, details)


class TokenizedCorpus:
    """A corpus with the tokens of its records.

    Args:
        scanned: What is in it.
        store: The tokens.
        number: Which of the corpora it is.
    """

    def __init__(self, scanned: ScannedCorpus, store: TokenStore, number: int) -> None:
        self.scanned = scanned
        self.store = store
        self.number = number

    @property
    def name(self) -> str:
        """How curves and tables call it."""
        return self.scanned.name

    def example(self, record: int) -> Example:
        """An encoded record."""
        found = self.store.read(record)
        source = self.scanned.records.source(record)
        return Example(
            found.input_ids, found.labels, source, corpus=self.number, starts=found.starts, judgment=found.judgment
        )


def fingerprint_of(text: TextInterface, encoding: Encoding) -> str:
    """A name for the way in which records become tokens, among those of one kind of encoding."""
    return digest(
        [hashlib.sha256(file.read_bytes()).hexdigest() for file in text.tokenizer_files],
        type(encoding.prompt_format).__qualname__,
        getattr(encoding.prompt_format, "__dict__", {}),
        *encoding.options().values(),
    )


def encoded_corpora(
    scanned: Sequence[ScannedCorpus], text: TextInterface, encoding: Encoding, cache: Path
) -> list[TokenizedCorpus]:
    """The corpora with the tokens that are there already."""
    writing = fingerprint_of(text, encoding)
    deciding = (__name__, *text.deciding_classes, type(encoding.prompt_format), type(encoding.tokenizer))
    corpora = []
    for number, corpus in enumerate(scanned):
        code = code_digest(*deciding, type(corpus.corpus), type(encoding))
        folder = cache / "tokens" / digest(corpus.fingerprint, type(encoding).__qualname__, writing, code)
        corpora.append(TokenizedCorpus(corpus, TokenStore(folder, len(corpus.records)), number))
    return corpora


Selection = tuple[NDArray[Any], NDArray[Any]]
"""Records of several corpora: number of the corpus [N] and of the record in it [N]."""


class Encoder:
    """Sees to it that records are encoded when they are needed.

    Args:
        corpora: Where the records are, and where the tokens go.
        encoding: How to encode.
        num_workers: Processes that encode; 0 to do it here, when a record is needed.
        is_first: Whether this is the process of its machine that encodes; the others wait for it.
    """

    def __init__(
        self, corpora: Sequence[TokenizedCorpus], encoding: Encoding, *, num_workers: int, is_first: bool
    ) -> None:
        self._corpora = corpora
        self._encoding = encoding
        self._num_workers = num_workers
        self._is_first = is_first
        self._parent = os.getppid()  # of a process that waits: the one that encodes, or the launcher of both
        self._thread: Thread | None = None
        self._error: BaseException | None = None
        self._is_ending = False

    def need(self, selection: Selection, what: str = "examples") -> None:
        """Return when all of these records are encoded: at once here, or by the process that does it."""
        # One process of a machine writes tokens, the others read the same files; the store itself says what is ready,
        # so no message passes between them. A waiting process must notice by itself that nobody will write any more:
        # its parent is the one that encodes or the launcher of both, and when that ends the system gives it another.
        while not self._is_ready(selection):
            if self._is_first:
                self._encode_now(selection, what)
            elif os.getppid() != self._parent:
                raise DataError("the process that encodes the data has ended; see its message")
            else:
                time.sleep(POLL_SECONDS)

    def await_begun(self, selection: Selection) -> None:
        """The same for records that the background comes to, if there is one."""
        while self._thread is not None and self._thread.is_alive() and not self._is_ready(selection):
            time.sleep(POLL_SECONDS)
        if self._error:
            raise self._error
        self.need(selection)

    def begin(self, selection: Selection) -> None:
        """Encode these records in the background, in this order, in worker processes."""
        if not self._is_first or not self._num_workers or (self._thread and self._thread.is_alive()):
            return
        chunks = self._missing(selection)
        if chunks:
            # The processes are started here and not in the thread, where another one might hold a lock.
            results = in_workers(self._encode_chunk, chunks, self._num_workers)
            self._thread = Thread(target=self._keep, args=(chunks, results), daemon=True)
            self._thread.start()
            # Before multiprocessing ends the workers itself: torch would take that for their sudden death.
            atexit.register(self._end)

    def num_tokens(self, selection: Selection) -> NDArray[np.int64]:
        """Length of each record; all must be encoded."""
        corpus_of, records = selection
        lengths = np.zeros(len(records), dtype=np.int64)
        for corpus in self._corpora:
            own = corpus_of == corpus.number
            lengths[own] = corpus.store.num_tokens(records[own])
        return lengths

    def _is_ready(self, selection: Selection) -> bool:
        corpus_of, records = selection
        return all(corpus.store.is_ready(records[corpus_of == corpus.number]).all() for corpus in self._corpora)

    def _missing(self, selection: Selection) -> list[tuple[int, NDArray[Any]]]:
        """Chunks of records of one corpus that are to be encoded, those that are needed first before others."""
        corpus_of, records = selection
        found: list[tuple[int, int, NDArray[Any]]] = []
        for corpus in self._corpora:
            places = np.flatnonzero(corpus_of == corpus.number)
            places = places[~corpus.store.is_ready(records[places])]
            for start in range(0, len(places), CHUNK):
                chunk = places[start : start + CHUNK]
                found.append((int(chunk[0]), corpus.number, records[chunk]))
        return [(number, chunk) for _, number, chunk in sorted(found, key=lambda entry: entry[:2])]

    def _encode_chunk(self, chunk: tuple[int, NDArray[Any]]) -> EncodedChunk:
        number, records = chunk
        return self._encoding.encode(self._corpora[number].scanned, records)

    def _encode_now(self, selection: Selection, what: str) -> None:
        chunks = self._missing(selection)
        num_workers = self._num_workers if len(chunks) > 1 else 0
        total = sum(len(records) for _, records in chunks)
        with bar(desc=f"tokenizing {what}", total=total, unit=" records", delay=2) as shown:
            for (number, records), encoded in zip(
                chunks, in_workers(self._encode_chunk, chunks, num_workers), strict=True
            ):
                self._corpora[number].store.append(encoded)
                shown.update(len(records))

    def _keep(self, chunks: list[tuple[int, NDArray[Any]]], results: Any) -> None:
        try:
            for (number, _), encoded in zip(chunks, results, strict=True):
                self._corpora[number].store.append(encoded)
                if self._is_ending:
                    break
        except BaseException as error:
            self._error = error
        finally:
            del results  # ends the processes now, and not whenever the error is forgotten

    def _end(self) -> None:
        """Leave what nobody needs any more."""
        self._is_ending = True
        if self._thread:
            self._thread.join()
