"""Everything that a preview shows, before anybody draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from lit_sft.conversation import IGNORE_INDEX
from lit_sft.data._base import CorpusData
from lit_sft.errors import ConfigError
from lit_sft.preview.pieces import Piece, PieceReader
from lit_sft.preview.statistics import SAMPLE, Statistics, measure


@dataclass(frozen=True)
class Part:
    """A stretch of an example under a heading of its own; a conversation is one without."""

    heading: str
    pieces: list[Piece]


@dataclass(frozen=True)
class ShownExample:
    """An example as the network reads it.

    `parts` are for people: there a prompt that stands before each of several answers is shown once.
    """

    corpus: str
    source: str
    remark: str
    pieces: list[Piece]
    parts: list[Part]

    @property
    def num_tokens(self) -> int:
        """Its length."""
        return sum(len(piece.ids) for piece in self.pieces)

    @property
    def num_supervised(self) -> int:
        """Tokens that carry loss."""
        return sum(len(piece.ids) for piece in self.pieces if piece.is_supervised)


@dataclass(frozen=True)
class Stretch:
    """The place of an example in a row, in tokens."""

    source: str
    start: int
    num_tokens: int


@dataclass(frozen=True)
class ShownMicroBatch:
    """The first micro-batch: what lies in each row, all of `num_columns` tokens."""

    rows: list[list[Stretch]]
    num_columns: int

    @property
    def padding_share(self) -> float:
        """Share of the positions that hold no token."""
        num_tokens = sum(stretch.num_tokens for row in self.rows for stretch in row)
        return 1 - num_tokens / (len(self.rows) * self.num_columns)


@dataclass(frozen=True)
class Preview:
    """What there is to show, and the options that it depends on."""

    checkpoint: Path
    max_length: int
    options: str
    packing: bool
    seed: int
    statistics: Statistics
    examples: list[ShownExample]
    micro_batch: ShownMicroBatch | None


def collect(data: CorpusData, checkpoint: Path, *, count: int, num_devices: int, accumulation: int) -> Preview:
    """Look at the training corpora.

    Args:
        data: The corpora.
        checkpoint: The model folder, for the heading.
        count: Examples of each corpus to show.
        num_devices: Devices that share the micro-batches.
        accumulation: Micro-batches of an optimizer step on each device.

    Raises:
        UserError: If the data cannot be read, or `count` is negative.
    """
    if count < 0:
        raise ConfigError(f"count is {count}; it must be at least 0")
    statistics = measure(data, num_devices=num_devices, accumulation=accumulation)
    return Preview(
        checkpoint=checkpoint,
        max_length=data.max_length,
        options=_options(data),
        packing=data.batching.packing,
        seed=data.seed,
        statistics=statistics,
        examples=[example for number in range(len(data.scanned)) for example in _examples(data, number, count)],
        micro_batch=_micro_batch(data, statistics.epoch.first),
    )


def _options(data: CorpusData) -> str:
    """What the kind of data adds to the common options, such as `loss on assistant`."""
    own = {name: value for name, value in data.encoding.options().items() if name != "max_length"}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in own.items())


def _examples(data: CorpusData, number: int, count: int) -> list[ShownExample]:
    """Those with which the first epoch begins: a random choice that the seed decides."""
    corpus = data.prepared.corpora[number]
    corpus_of, records = data.mixture.epoch(0)
    encoded = records[corpus_of == number][:SAMPLE]
    chosen = dict.fromkeys(encoded[corpus.store.num_tokens(encoded) > 0].tolist())
    reader = PieceReader(data.tokenizer)
    shown = []
    for record in islice(chosen, count):
        tokens = corpus.store.read(record)
        tokens.labels[tokens.starts] = IGNORE_INDEX  # nothing predicts the first token
        ids, labels = tokens.input_ids.tolist(), tokens.labels.tolist()
        ends = [*tokens.starts[1:], len(ids)]
        sequences = [reader.read(ids[a:b], labels[a:b]) for a, b in zip(tokens.starts, ends, strict=True)]
        pieces = [piece for sequence in sequences for piece in sequence]
        source, remark = corpus.scanned.records.source(record), corpus.store.remark(record)
        shown.append(ShownExample(corpus.name, source, remark, pieces, _parts(sequences, tokens.judgment)))
    return shown


def _parts(sequences: list[list[Piece]], judgment: float | None) -> list[Part]:
    if len(sequences) == 1 and judgment is None:
        return [Part("", sequences[0])]
    prompt_length = next(place for place, piece in enumerate(sequences[0]) if piece.is_supervised)
    if len(sequences) == 1:
        headings = [f"an answer that is {'good' if judgment else 'bad'}"]
    else:
        best = "the best" if judgment is None else f"better than the next by {judgment:g}"
        headings = [f"answer {n} of {len(sequences)}{f', {best}' * (n == 1)}" for n in range(1, len(sequences) + 1)]
    answers = [Part(said, pieces[prompt_length:]) for said, pieces in zip(headings, sequences, strict=True)]
    return [Part("the prompt" + ", before each answer" * (len(answers) > 1), sequences[0][:prompt_length]), *answers]


def _micro_batch(data: CorpusData, rows: Sequence[Sequence[tuple[int, int]]]) -> ShownMicroBatch | None:
    if not rows:
        return None
    shown = []
    for row in rows:
        stretches: list[Stretch] = []
        start = 0
        for number, record in row:
            corpus = data.prepared.corpora[number]
            num_tokens = int(corpus.store.num_tokens(np.array([record]))[0])
            stretches.append(Stretch(corpus.scanned.records.source(record), start, num_tokens))
            start += num_tokens
        shown.append(stretches)
    return ShownMicroBatch(shown, max(row[-1].start + row[-1].num_tokens for row in shown))
