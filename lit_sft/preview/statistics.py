"""What is in the data, counted: records and duplicates exactly, tokens on a sample where a corpus is large."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_sft.conversation import IGNORE_INDEX
from lit_sft.data._base import CorpusData
from lit_sft.data.encoder import Selection, TokenizedCorpus
from lit_sft.data.order import WINDOW, EpochOrder, Mixture, Position
from lit_sft.data.scan import FILTERED, GOOD, ScannedCorpus
from lit_sft.data.split import Split, is_first, split_keys

SAMPLE = 20_000
"""Records of a corpus that are encoded at most."""

PERCENTILES = (5, 25, 50, 75, 95, 99, 100)


@dataclass(frozen=True)
class Encoded:
    """What encoding made of records, one entry each [N].

    `lengths` is 0 where a record was left out because it is too long; `characters` counts those of all messages, and is
    0 where something was cut; `remarks` says what was cut, or why it was left out; `weights` for how many it stands.
    """

    lengths: NDArray[np.int64]
    supervised: NDArray[np.int64]
    characters: NDArray[np.int64]
    remarks: NDArray[np.str_]
    weights: NDArray[np.float64]

    @property
    def num_tokens(self) -> float:
        """Tokens of all examples."""
        return float(self.lengths @ self.weights)

    @property
    def num_supervised(self) -> float:
        """Tokens that carry loss."""
        return float(self.supervised @ self.weights)

    @property
    def characters_per_token(self) -> float:
        """Of the examples of which nothing was cut."""
        is_whole = (self.remarks == "") & (self.lengths > 0)
        num_tokens = self.lengths[is_whole] @ self.weights[is_whole]
        return float(self.characters[is_whole] @ self.weights[is_whole] / num_tokens) if num_tokens else 0.0

    @property
    def cut(self) -> dict[str, float]:
        """Examples of which something was cut, by what."""
        return self._remarked(self.lengths > 0)

    @property
    def unfit(self) -> dict[str, float]:
        """Records that were left out, by reason."""
        return self._remarked(self.lengths == 0)

    def percentiles(self) -> list[int]:
        """Lengths of examples at `PERCENTILES`; none if there are no examples."""
        is_example = self.lengths > 0
        if not is_example.any():
            return []
        weights = self.weights[is_example]
        found = np.percentile(self.lengths[is_example], PERCENTILES, weights=weights, method="inverted_cdf")
        return [int(length) for length in found]

    def histogram(self, num_bins: int, longest: int) -> NDArray[np.float64]:
        """Examples of each length, in equal bins from 1 to `longest` tokens."""
        is_example = self.lengths > 0
        weights = self.weights[is_example]
        counts, _ = np.histogram(self.lengths[is_example], num_bins, range=(0.5, longest + 0.5), weights=weights)
        return np.asarray(counts)

    def _remarked(self, chosen: NDArray[np.bool_]) -> dict[str, float]:
        names = sorted(set(self.remarks[chosen].tolist()) - {""})
        return {name: float(self.weights[chosen & (self.remarks == name)].sum()) for name in names}


@dataclass(frozen=True)
class CorpusStatistics:
    """A corpus, or all together.

    `num_repeats_inside` say what an earlier record of the same corpus says, `num_repeats_across` what only a record of
    an earlier corpus says. `num_train` and `num_validation` count records, not what an epoch takes of them.
    """

    name: str
    num_records: int
    num_usable: int
    num_left_out: int
    skipped: Counter[str]
    repaired: Counter[str]
    num_repeats_inside: int
    num_repeats_across: int
    num_train: int
    num_validation: int
    encoded: Encoded
    is_sampled: bool


@dataclass(frozen=True)
class SplitStatistics:
    """Whether training and validation are apart.

    `num_shared` records to train on say what a held-out one says, or compare answers to its prompt: none, or there is
    an error. `num_repeats` say what another held-out record says; they are `dropped`, or held out with it.
    """

    num_shared: int
    num_repeats: int
    dropped: bool


@dataclass(frozen=True)
class EpochStatistics:
    """The first epoch: how many micro-batches and optimizer steps it has, and how much of them is padding.

    `first` is the micro-batch with which it begins: rows of (corpus, record).
    """

    num_examples: int
    num_tokens: float
    num_micro_batches: float
    num_steps: float
    num_devices: int
    accumulation: int
    row_fill: float
    padding_share: float
    is_sampled: bool
    first: list[list[tuple[int, int]]]


@dataclass(frozen=True)
class Statistics:
    """Everything that is counted, and what the data module says besides."""

    corpora: list[CorpusStatistics]
    total: CorpusStatistics
    split: SplitStatistics
    epoch: EpochStatistics
    notes: list[str]


def measure(data: CorpusData, *, num_devices: int, accumulation: int) -> Statistics:
    """Count what is in the training corpora.

    Args:
        data: The corpora.
        num_devices: Devices that share the micro-batches.
        accumulation: Micro-batches of an optimizer step on each device.
    """
    epoch = data.mixture.epoch(0)
    corpora = [_corpus(data, epoch, number) for number in range(len(data.scanned))]
    return Statistics(
        corpora, _total(corpora), _split(data), _epoch(data, epoch, num_devices, accumulation), data.notes()
    )


def _corpus(data: CorpusData, epoch: Selection, number: int) -> CorpusStatistics:
    scanned, scan = data.scanned[number], data.scanned[number].scan
    train, validation = (_records_of(number, part) for part in (data.split.train, data.split.validation))
    used = np.concatenate([train, validation])
    is_sampled = len(used) > SAMPLE
    # The beginning of the epoch is a random sample, and what training needs first.
    records = np.unique(_records_of(number, epoch)[:SAMPLE]) if is_sampled else used
    data.prepared.encoder.need((np.full(len(records), number, dtype=np.uint8), records))
    inside, across = _repeats(data.scanned, data.split, number)
    return CorpusStatistics(
        name=scanned.name,
        num_records=len(scanned.records),
        num_usable=len(scan.good),
        num_left_out=scan.num_left_out,
        skipped=Counter({v: len(scan.records_with(v)) for v in scan.verdict_names if v not in {GOOD, FILTERED}}),
        repaired=Counter({repair: len(scan.repaired_records(repair)) for repair in scan.repair_names}),
        num_repeats_inside=inside,
        num_repeats_across=across,
        num_train=len(train),
        num_validation=len(validation),
        encoded=_encoded(data.prepared.corpora[number], records, len(used)),
        is_sampled=is_sampled,
    )


def _encoded(corpus: TokenizedCorpus, records: NDArray[np.uint32], num_used: int) -> Encoded:
    remarks = np.array(corpus.store.remark_names, dtype=np.str_)[corpus.store.table["remark"][records]]
    lengths = corpus.store.num_tokens(records)
    supervised, characters = np.zeros((2, len(records)), dtype=np.int64)
    for place, record in enumerate(records.tolist()):
        if lengths[place]:
            # The first token of an example is never predicted.
            supervised[place] = (corpus.store.read(record).labels[1:] != IGNORE_INDEX).sum()
        if lengths[place] and not remarks[place]:
            messages = [m for talk in corpus.scanned.record(record).conversations() for m in talk.messages]
            characters[place] = sum(len(m.content) + len(m.thoughts) + len(m.commands) for m in messages)
    weights = np.full(len(records), num_used / max(1, len(records)))
    return Encoded(lengths, supervised, characters, remarks, weights)


def _repeats(corpora: Sequence[ScannedCorpus], split: Split, number: int) -> tuple[int, int]:
    """Duplicates in a corpus of its own records, and of those of earlier corpora only."""
    scan = corpora[number].scan
    num_repeats = len(_records_of(number, split.duplicates))
    num_inside = int((~is_first(scan.fingerprints[scan.good])).sum())
    return num_inside, num_repeats - num_inside


def _total(corpora: Sequence[CorpusStatistics]) -> CorpusStatistics:
    def together(name: str) -> NDArray[np.generic]:
        return np.concatenate([getattr(corpus.encoded, name) for corpus in corpora])

    counts = {
        name: sum(getattr(corpus, name) for corpus in corpora)
        for name in CorpusStatistics.__dataclass_fields__
        if name.startswith("num_")
    }
    encoded = Encoded(**{name: together(name) for name in Encoded.__dataclass_fields__})  # type: ignore[arg-type]
    return CorpusStatistics(
        name="all",
        skipped=sum((corpus.skipped for corpus in corpora), Counter()),
        repaired=sum((corpus.repaired for corpus in corpora), Counter()),
        encoded=encoded,
        is_sampled=any(corpus.is_sampled for corpus in corpora),
        **counts,
    )


def _split(data: CorpusData) -> SplitStatistics:
    train, validation, repeats = (
        split_keys(data.scanned, part) for part in (data.split.train, data.split.validation, data.split.duplicates)
    )
    return SplitStatistics(
        num_shared=int(np.isin(train, validation).sum()),
        num_repeats=int(np.isin(repeats, validation).sum()),
        dropped=data.deduplicate,
    )


def _epoch(data: CorpusData, records: Selection, num_devices: int, accumulation: int) -> EpochStatistics:
    total = len(records[0])
    seen = min(total, -(-min(total, SAMPLE) // WINDOW) * WINDOW)
    beginning = _Beginning(**vars(data.mixture), num_records=seen)
    encoder = data.prepared.encoder
    order = EpochOrder(beginning, data.batching, encoder, start=Position(), num_ranks=1, rank=0)
    batches = [batch.rows for batch in order]
    num_tokens = num_positions = num_rows = 0
    for rows in batches:
        corpus_of, record = np.array([example for row in rows for example in row]).T
        first_of_row = np.cumsum([0, *map(len, rows[:-1])])
        sums = np.add.reduceat(encoder.num_tokens((corpus_of, record)), first_of_row)
        num_tokens += int(sums.sum())
        num_positions += len(rows) * int(sums.max())
        num_rows += len(rows)
    scale = total / max(1, seen)
    num_micro_batches = len(batches) * scale
    return EpochStatistics(
        num_examples=total,
        num_tokens=num_tokens * scale,
        num_micro_batches=num_micro_batches,
        num_steps=-(-num_micro_batches // (num_devices * accumulation)),
        num_devices=num_devices,
        accumulation=accumulation,
        row_fill=num_tokens / max(1, num_rows * data.batching.row_length),
        padding_share=1 - num_tokens / num_positions if num_positions else 0.0,
        is_sampled=seen < total,
        first=batches[0] if batches else [],
    )


@dataclass(frozen=True)
class _Beginning(Mixture):
    """The first records of each epoch, cut as the whole is."""

    num_records: int

    def epoch(self, epoch: int) -> Selection:
        corpus_of, records = super().epoch(epoch)
        return corpus_of[: self.num_records], records[: self.num_records]


def _records_of(number: int, selection: Selection) -> NDArray[np.uint32]:
    corpus_of, records = selection
    return np.asarray(records[corpus_of == number])
