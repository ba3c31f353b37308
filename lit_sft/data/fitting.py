"""How many records fit what the model reads, of those that are tokenized so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_sft.data.encoder import Selection, TokenizedCorpus
from lit_sft.errors import DataError


@dataclass(frozen=True)
class Fitting:
    """Of the `num_tokenized` of `num_records`: how many were cut, and how many left out, by reason."""

    num_records: int
    num_tokenized: int
    cut: Counter[str]
    left_out: Counter[str]

    @property
    def is_all(self) -> bool:
        """Whether there is nothing left to tokenize."""
        return self.num_tokenized == self.num_records


def fitting_of(corpus: TokenizedCorpus, selection: Selection) -> Fitting:
    """What is known so far of those of these records that are of this corpus."""
    corpus_of, numbers = selection
    records, store = numbers[corpus_of == corpus.number], corpus.store
    tokenized = records[store.is_ready(records)]
    is_example, codes = store.num_tokens(tokenized) > 0, store.table["remark"][tokenized]

    def counted(chosen: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Counter[str]:
        found, counts = np.unique(codes[chosen], return_counts=True)
        names = [store.remark_names[code] for code in found.tolist()]
        return Counter({name: count for name, count in zip(names, counts.tolist(), strict=True) if name})

    return Fitting(len(records), len(tokenized), counted(is_example), counted(~is_example))


def check_fitting(
    corpora: Sequence[TokenizedCorpus], selection: Selection, max_bad_fraction: float, max_length: int
) -> None:
    """Refuse a corpus of which too much is left out, as one of which too much is bad.

    Args:
        corpora: The corpora.
        selection: Their records; those that are tokenized count.
        max_bad_fraction: The share that may be left out.
        max_length: Tokens of an example at most.

    Raises:
        DataError: With the reasons.
    """
    for corpus in corpora:
        found = fitting_of(corpus, selection)
        count = found.left_out.total()
        if count > max_bad_fraction * found.num_tokenized:
            reasons = ", ".join(f"{number} {name}" for name, number in found.left_out.most_common())
            is_long = "prompt-too-long" in found.left_out
            raise DataError(
                f"{corpus.name}: {count} of {found.num_tokenized} records do not fit ({reasons}), with "
                f"data.max_length = {max_length}. {'Raise it' if is_long else 'Leave such records out'}, or raise "
                f"data.max_bad_fraction = {max_bad_fraction:g}"
            )
