"""Which class reads a file that the class of the configuration cannot read."""

from __future__ import annotations

from itertools import islice

from lit_sft.corpora._base import Corpus
from lit_sft.data.records import FileRecords
from lit_sft.errors import BadRecord, UserError
from lit_sft.plugins import discover

NUM_TRIED = 3
"""Records of the file that are tried."""


def classes_that_read(file: FileRecords) -> list[str]:
    """Names of the classes that read the first records of a file and leave the least of them unused."""
    records = [file.read(number) for number in islice(range(len(file)), NUM_TRIED)]
    if not records:
        return []
    found: dict[str, int] = {}
    for name, kind in discover("lit_sft.corpora._base.Corpus", "lit_sft.preferences._base.JudgedAnswers").items():
        try:
            corpus: Corpus = kind(str(file.file))
            readings = [corpus.read(data, corpus.layout_in(data)) for data in records]
        except (BadRecord, UserError, TypeError):  # a class of another package may need more than a path
            continue
        found[name] = sum(len(reading.repairs) for reading in readings)
    return sorted(name for name, num_repairs in found.items() if num_repairs == min(found.values()))
