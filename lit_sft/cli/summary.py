"""The verb summary: what a run learned. Loads no torch, so that it answers at once."""

from __future__ import annotations

import json
from pathlib import Path

from lit_sft.errors import ConfigError
from lit_sft.runs.folder import SUMMARY, newest_run
from lit_sft.runs.summary import render


def summary(run: str | None = None, runs: str = "runs") -> None:
    """Print what a run learned.

    Args:
        run: Run folder; the newest one if not given.
        runs: Where runs are looked for.
    """
    folder = Path(run) if run else newest_run(Path(runs))
    if not folder.is_dir():
        raise ConfigError(f"run folder not found: {folder}")
    file = folder / SUMMARY
    if not file.is_file():
        raise ConfigError(f"{folder} holds no {SUMMARY}: the run did not finish")
    print(render(folder, json.loads(file.read_text(encoding="utf-8"))))  # noqa: T201
