"""What was wrong with the data: counted by reason, listed with file:line, never fatal and never silent."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from lit_sft.corpora._base import Finding
from lit_sft.errors import DataError

MAX_LISTED = 1000
"""Findings listed for each reason; a file with a million CRLF lines should not make a second one as large."""


class Quarantine:
    """Collects findings; every one is counted, the first thousand of each reason are listed.

    Args:
        stop_at_first: Raise at the first record that would be skipped.
    """

    def __init__(self, *, stop_at_first: bool = False) -> None:
        self.skipped: Counter[str] = Counter()
        self.repaired: Counter[str] = Counter()
        self._listed: list[Finding] = []
        self._stop_at_first = stop_at_first

    def report(self, finding: Finding) -> None:
        """Count a finding.

        Raises:
            DataError: If `stop_at_first` and the record cannot be kept.
        """
        if self._stop_at_first and not finding.is_kept:
            raise DataError(
                f"{finding.source}: {finding.reason}: {finding.excerpt[:80]!r}. "
                "Repair the record, or set on_bad_record: skip"
            )
        counts = self.repaired if finding.is_kept else self.skipped
        counts[finding.reason] += 1
        if counts[finding.reason] <= MAX_LISTED:
            self._listed.append(finding)

    def write(self, path: Path) -> None:
        """One JSON object for each listed finding, then one with all counts."""
        lines = [asdict(finding) for finding in self._listed]
        counts = {"skipped": dict(self.skipped), "kept_after_repair": dict(self.repaired)}
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".partial")
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in [*lines, {"counts": counts}])
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)

    def __str__(self) -> str:
        parts = [
            f"{count} {verb}: {reason}"
            for verb, counts in (("skipped", self.skipped), ("kept", self.repaired))
            for reason, count in counts.most_common()
        ]
        return ", ".join(parts) or "no bad records"
