"""What preparation found, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lit_sft.data.encoder import Selection
from lit_sft.data.scan import ScannedCorpus
from lit_sft.data.split import Split

COLUMNS = ("corpus", "records", "left out", "bad", "repaired", "duplicates", "train", "validation")


def preparation_table(corpora: Sequence[ScannedCorpus], split: Split, *, deduplicate: bool) -> str:
    """A row for each corpus, and under it what is wrong with its records, by reason.

    `left out`: by the filters; `duplicates`: usable records that say what one before them says, in any corpus.
    """
    rows: list[Sequence[str]] = [COLUMNS]
    for number, corpus in enumerate(corpora):
        scan = corpus.scan
        counts = [len(scan.verdicts), scan.num_left_out, scan.bad.total(), int(np.count_nonzero(scan.repairs))]
        counts += [_count(part, number) for part in (split.duplicates, split.train, split.validation)]
        rows.append([corpus.name, *(f"{count:,}" for count in counts)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    for corpus in corpora:
        table += [f"{corpus.name}: {count:,} {reason}" for reason, count in corpus.scan.findings.most_common()]
    if len(split.duplicates[0]) and not deduplicate:
        table.append(
            "Duplicates are trained on as often as they occur; data.deduplicate: true keeps the first of each."
        )
    return "\n".join(table)


def _count(selection: Selection, corpus: int) -> int:
    return int(np.count_nonzero(selection[0] == corpus))
