"""What was wrong with the data: counted by reason, listed with file:line, never fatal by itself and never silent."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lit_sft.corpora._base import Finding
from lit_sft.data.encoder import EncodedCorpus
from lit_sft.data.scan import EMPTY_LINE, GOOD, LEFT_OUT, MAX_LISTED
from lit_sft.errors import DataError
from lit_sft.files import write_text


class Quarantine:
    """What was found in corpora so far: in reading, all of it; in encoding, as far as that got.

    Args:
        corpora: Where it was found.
    """

    def __init__(self, corpora: Sequence[EncodedCorpus]) -> None:
        self._corpora = corpora

    @property
    def skipped(self) -> Counter[str]:
        """Records that are not used, by reason."""
        return self._count(is_kept=False)

    @property
    def repaired(self) -> Counter[str]:
        """Records that are used after a repair or a cut, by reason."""
        return self._count(is_kept=True)

    def findings(self) -> Iterator[Finding]:
        """The first thousand records of each reason and corpus."""
        for corpus in self._corpora:
            details = corpus.store.details
            for is_kept, reason, numbers in _found_in(corpus):
                for number in numbers[:MAX_LISTED].tolist():
                    yield corpus.scanned.finding(number, reason, is_kept=is_kept, detail=details.get(number, ""))

    def refuse_any(self) -> None:
        """Stop at the first record that is not used.

        Raises:
            DataError: Naming it.
        """
        for finding in self.findings():
            if not finding.is_kept and finding.reason != EMPTY_LINE:
                detail = f" ({finding.detail})" if finding.detail else ""
                raise DataError(
                    f"{finding.source}: {finding.reason}{detail}: {finding.excerpt[:80]!r}. "
                    "Repair the record, or set on_bad_record: skip"
                )

    def write(self, path: Path) -> None:
        """One JSON object for each listed finding, then one with all counts."""
        counts = {"skipped": dict(self.skipped), "kept_after_repair": dict(self.repaired)}
        lines = [*(_listed(finding) for finding in self.findings()), {"counts": counts}]
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), errors="replace")

    def __str__(self) -> str:
        parts = [
            f"{count} {verb}: {reason}"
            for verb, counts in (("skipped", self.skipped), ("kept", self.repaired))
            for reason, count in counts.most_common()
        ]
        return ", ".join(parts) or "no bad records"

    def _count(self, *, is_kept: bool) -> Counter[str]:
        found: Counter[str] = Counter()
        for corpus in self._corpora:
            found.update({reason: len(numbers) for kept, reason, numbers in _found_in(corpus) if kept == is_kept})
        return found


def _listed(finding: Finding) -> dict[str, Any]:
    """An entry of the list, without a detail that there is not."""
    return {name: value for name, value in asdict(finding).items() if name != "detail" or value}


def _found_in(corpus: EncodedCorpus) -> Iterator[tuple[bool, str, np.ndarray[tuple[int], np.dtype[np.int64]]]]:
    """Whether they are used, why they are listed, and numbers of the records of a corpus."""
    scan, table = corpus.scanned.scan, corpus.store.table
    for name in scan.verdict_names:
        if name not in {GOOD, LEFT_OUT}:
            yield False, name, scan.records_with(name)
    for name in scan.repair_names:
        yield True, name, scan.repaired_records(name)
    for code, name in enumerate(corpus.store.remark_names):
        if name:
            numbers = np.flatnonzero(table["remark"] == code)
            is_kept = bool(len(numbers)) and bool(table["num_tokens"][numbers[0]])
            yield is_kept, name, numbers
