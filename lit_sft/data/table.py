"""What preparation found, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lit_sft.corpora._base import UNUSED_KEY, excerpt
from lit_sft.data.encoder import Selection, TokenizedCorpus
from lit_sft.data.fitting import Fitting, fitting_of
from lit_sft.data.scan import ScannedCorpus
from lit_sft.data.split import Split
from lit_sft.display import in_columns

COLUMNS = (
    *("corpus", "records", "left out", "bad", "repaired", "duplicates", "cut", "too long", "train"),
    "validation",
)

MAX_SHOWN = 100
"""Characters of a record that is shown as an example."""


def preparation_table(corpora: Sequence[TokenizedCorpus], split: Split, *, deduplicate: bool) -> str:
    """A row for each corpus, and under it what is wrong with its records, by reason.

    `left out`: by the filters; `duplicates`: usable records that say what one before them says, in any corpus; `cut`
    and `too long`: of those to train on, with a `+` where not all are tokenized yet.
    """
    rows: list[Sequence[str]] = [COLUMNS]
    fitting = [fitting_of(corpus, split.train) for corpus in corpora]
    for number, (corpus, found) in enumerate(zip(corpora, fitting, strict=True)):
        scan = corpus.scanned.scan
        counts = [len(scan.verdicts), scan.num_left_out, scan.bad.total(), scan.num_repaired]
        counts.append(_count(split.duplicates, number))
        so_far = [f"{counter.total():,}{'' if found.is_all else '+'}" for counter in (found.cut, found.left_out)]
        parts = [_count(part, number) for part in (split.train, split.validation)]
        rows.append([corpus.name, *(f"{n:,}" for n in counts), *so_far, *(f"{n:,}" for n in parts)])
    table = in_columns(rows)
    for corpus, found in zip(corpora, fitting, strict=True):
        table += _reasons(corpus, found)
    if len(split.duplicates[0]) and not deduplicate:
        table.append(
            "Duplicates are trained on as often as they occur; data.deduplicate: true keeps the first of each."
        )
    return "\n".join(table)


def unused_keys(corpus: ScannedCorpus) -> Iterator[str]:
    """A line for each key of its records that nothing reads, with an example."""
    for reason in corpus.scan.repair_names:
        if not reason.startswith(UNUSED_KEY):
            continue
        numbers = corpus.scan.repaired_records(reason)
        first = int(numbers[0])
        key = reason.removeprefix(UNUSED_KEY).strip()
        data = corpus.records.read(first)
        place = max(0, data.find(f'"{key.rpartition(".")[2]}"'.encode()))
        yield (
            f"{corpus.name}: {len(numbers):,} records have the key {key}, which is not read, the first at "
            f"{corpus.records.source(first)}: {excerpt(data[place:])[:MAX_SHOWN]} ... "
            "(unused_keys: refuse makes them bad records)"
        )


def _reasons(corpus: TokenizedCorpus, found: Fitting) -> Iterator[str]:
    for reason, count in corpus.scanned.scan.findings.most_common():
        if not reason.startswith(UNUSED_KEY):
            yield f"{corpus.name}: {count:,} {reason}"
    for reason, count in found.cut.most_common():
        yield f"{corpus.name}: {count:,} of {found.num_tokenized:,} records {reason}"
    for reason, count in found.left_out.most_common():
        yield f"{corpus.name}: {count:,} of {found.num_tokenized:,} records do not fit ({reason})"


def _count(selection: Selection, corpus: int) -> int:
    return int(np.count_nonzero(selection[0] == corpus))
