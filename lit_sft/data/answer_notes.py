"""What is to be known of ranked and judged answers before anything learns from them: length bias, contradictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from lit_sft.conversation import Judged, Preference, Record
from lit_sft.data.encoder import Selection
from lit_sft.data.scan import ScannedCorpus
from lit_sft.data.split import split_keys

SAMPLE = 5000
"""Records that are read again at most."""

BIASED = 0.6
"""Share of pairs from which on the length alone says too much (62% in the demo pairs of LLaMA-Factory)."""


def answer_notes(corpora: Sequence[ScannedCorpus], selection: Selection) -> list[str]:
    """A line for each corpus, and one for contradictions if there are any.

    Args:
        corpora: Where the records are.
        selection: Those to train on. Of more than 5,000 of a corpus as many are looked at, evenly spread.
    """
    corpus_of, records = selection
    notes = []
    for number, corpus in enumerate(corpora):
        chosen = records[corpus_of == number]
        looked_at = chosen[:: -(-len(chosen) // SAMPLE) or 1]
        counts = _Counts()
        for record in looked_at.tolist():
            counts.add(corpus.record(record))
        is_sampled = len(looked_at) < len(chosen)
        notes += [f"{corpus.name}: {said}{f' (of {len(looked_at):,} records)' * is_sampled}" for said in counts.notes()]
    return [*notes, *_contradictions(corpora, selection)]


@dataclass
class _Counts:
    """Pairs by whether the better answer is the longer one, and characters of the better and the worse answers."""

    outcomes: Counter[str] = field(default_factory=Counter)
    better: list[int] = field(default_factory=list)
    worse: list[int] = field(default_factory=list)
    good: list[int] = field(default_factory=list)
    bad: list[int] = field(default_factory=list)

    def add(self, record: Record) -> None:
        if isinstance(record, Judged):
            (self.good if record.is_good else self.bad).append(len(record.answer.content))
        elif isinstance(record, Preference):
            for better, worse in combinations([len(answer.content) for answer in record.answers], 2):
                self.outcomes["longer" if better > worse else "shorter" if better < worse else "equal"] += 1
                self.better.append(better)
                self.worse.append(worse)

    def notes(self) -> Iterator[str]:
        num_pairs = len(self.better)
        if num_pairs:
            longer, shorter = (self.outcomes[name] / num_pairs for name in ("longer", "shorter"))
            yield (
                f"{_number(num_pairs, 'pair')}, the longer answer is the better one in {longer:.0%} and the shorter "
                f"one in {shorter:.0%}; {_mean(self.better)} characters on average against {_mean(self.worse)}"
                + _warning(max(longer, shorter))
            )
        if self.good or self.bad:
            num_judged = len(self.good) + len(self.bad)
            yield (
                f"{_number(num_judged, 'judged answer')}, {len(self.good) / num_judged:.0%} of them good; good ones "
                f"have {_mean(self.good)} characters on average, bad ones {_mean(self.bad)}"
            )


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _mean(lengths: list[int]) -> str:
    return f"{np.mean(lengths):.0f}" if lengths else "-"


def _warning(share: float) -> str:
    return ". Length alone predicts much of this: see that it is not all that is learned" * (share >= BIASED)


def _contradictions(corpora: Sequence[ScannedCorpus], selection: Selection) -> list[str]:
    """Pairs that stand in the data in both orders, and answers that are judged both ways.

    They can only be among records of one prompt, so no others are read again.
    """
    keys = split_keys(corpora, selection)
    _, group_of, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    places = np.flatnonzero(sizes[group_of] > 1)[:SAMPLE]
    judged: dict[tuple[int, str, str], str] = {}
    found: list[tuple[str, str]] = []
    for place in places.tolist():
        record = corpora[int(selection[0][place])].record(int(selection[1][place]))
        for first, second in _verdicts(record):
            judged.setdefault((int(keys[place]), first, second), record.source)
            if other := judged.get((int(keys[place]), second, first)):
                found.append((other, record.source))
    if not found:
        return []
    first, second = found[0]
    is_sampled = f" in {SAMPLE:,} of the records that share their prompt" * (len(places) == SAMPLE)
    return [
        f"{_number(len(found), 'contradiction')}{is_sampled}: {first} judges answers one way and {second} the other way"
    ]


def _verdicts(record: Record) -> Iterator[tuple[str, str]]:
    """Ordered pairs of texts, of which the reverse contradicts them."""
    if isinstance(record, Preference):
        yield from combinations([answer.content for answer in record.answers], 2)
    elif isinstance(record, Judged):
        sides = (f"\1{record.answer.content}", f"\2{record.answer.content}")
        yield sides if record.is_good else sides[::-1]
