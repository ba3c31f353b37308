"""Corpora made ready: what is in them is known, and any of their records can be had as an example."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lit_sft.conversation import Example, Record, TextInterface
from lit_sft.corpora._base import Corpus
from lit_sft.data.batch import Batch
from lit_sft.data.encoder import Encoder, Encoding, Selection, encoded_corpora
from lit_sft.data.order import MicroBatch
from lit_sft.data.quarantine import Quarantine
from lit_sft.data.scan import ScannedCorpus, scan_corpus
from lit_sft.data.workers import prepare_worker


def scan_corpora(corpora: Sequence[Corpus], cache: Path, num_workers: int) -> list[ScannedCorpus]:
    """Every corpus with all that is in it, named after its class; a second one of a class is NAME-2.

    Raises:
        DataError: If a file is missing or empty, no record of it can be read, or a filter matches nothing.
    """
    seen: Counter[str] = Counter()
    scanned = []
    for corpus in corpora:
        name = type(corpus).__name__
        seen[name] += 1
        full_name = f"{name}-{seen[name]}" if seen[name] > 1 else name
        scanned.append(scan_corpus(full_name, corpus, cache, num_workers))
    return scanned


def records_of(corpora: Sequence[ScannedCorpus], selection: Selection) -> list[Record]:
    """What is in these records."""
    corpus_of, records = (part.tolist() for part in selection)
    return [corpora[number].record(record) for number, record in zip(corpus_of, records, strict=True)]


class Collate(Protocol):
    """How rows of examples become a batch; see `lit_sft.data.collate.collate`."""

    def __call__(
        self, rows: Sequence[Sequence[Example]], pad_token_id: int, *, corpora: Sequence[str], epoch_progress: float
    ) -> Batch:
        """A batch of them."""


class Prepared(Dataset[Batch]):
    """Micro-batches of examples from corpora.

    Args:
        scanned: The corpora with all that is in them.
        text: How the model reads text.
        encoding: How records become examples.
        collate: How rows of them become a batch.
        cache: Where the tokens lie.
        num_workers: Processes that encode.
        is_first: Whether this is the process of its machine that encodes.
    """

    def __init__(
        self,
        scanned: Sequence[ScannedCorpus],
        text: TextInterface,
        encoding: Encoding,
        collate: Collate,
        cache: Path,
        *,
        num_workers: int,
        is_first: bool,
    ) -> None:
        self.corpora = encoded_corpora(scanned, text, encoding, cache)
        self.encoder = Encoder(self.corpora, encoding, num_workers=num_workers, is_first=is_first)
        self.quarantine = Quarantine(self.corpora)
        self._collate = collate
        self._names = [corpus.name for corpus in self.corpora]
        pad_token_id = encoding.tokenizer.pad_token_id
        self._pad_token_id = encoding.tokenizer.eos_token_id if pad_token_id is None else pad_token_id

    def __getitem__(self, micro_batch: MicroBatch) -> Batch:
        rows = [[self.corpora[number].example(record) for number, record in row] for row in micro_batch.rows]
        return self._collate(rows, self._pad_token_id, corpora=self._names, epoch_progress=micro_batch.epoch_progress)

    def __getstate__(self) -> dict[str, object]:
        """A worker process assembles batches and does not encode."""
        return {name: value for name, value in vars(self).items() if name not in {"encoder", "quarantine"}}

    def loader(self, order: Sampler[MicroBatch], *, num_workers: int, pin_memory: bool) -> DataLoader[Batch]:
        """The micro-batches in this order, whatever the number of workers."""
        return DataLoader(
            self,
            batch_size=None,
            sampler=order,
            num_workers=num_workers,
            pin_memory=pin_memory,
            worker_init_fn=prepare_worker,
            generator=torch.Generator(),  # nothing here is random; training draws from the common one
        )
