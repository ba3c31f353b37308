"""The verb summary: what a run learned. Loads torch only for one that has not finished, else it answers at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_sft.errors import ConfigError
from lit_sft.runs.folder import CONFIG, LAST_CHECKPOINT, SUMMARY, command, is_run, newest_run
from lit_sft.runs.summary import render


def summary(run: str | None = None, runs: str = "runs") -> None:
    """Print what a run learned.

    Args:
        run: Run folder; the newest one if not given.
        runs: Where runs are looked for.
    """
    folder = Path(run) if run else newest_run(Path(runs))
    if not is_run(folder):
        raise ConfigError(f"{folder} is not a run folder: it holds no {CONFIG}")
    print(render(folder, content_of(folder)))  # noqa: T201


def content_of(run: Path) -> dict[str, Any]:
    """What a run measured: at its end, or until now.

    Raises:
        ConfigError: If it did not get as far as a checkpoint, or its summary is damaged.
    """
    file = run / SUMMARY
    if not file.is_file():
        return _so_far(run)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or "optimizer_steps" not in content:
        raise ConfigError(f"{file} is damaged; remove it, and what the last checkpoint knows is shown")
    return content


def _so_far(run: Path) -> dict[str, Any]:
    """What a run that has not finished has measured, as its last checkpoint has it."""
    checkpoint, remedy = run / LAST_CHECKPOINT, f"{command('python')} -m lit_sft fit --resume {run}"
    if not checkpoint.is_file():
        raise ConfigError(f"{run} holds no {SUMMARY} and no {LAST_CHECKPOINT}: it did not get that far. Start it again")
    from lit_sft.callbacks.checkpoint_file import read_checkpoint  # loads torch

    stored = read_checkpoint(checkpoint)
    measured, samples = (stored["callbacks"].get(name, {}) for name in ("Summary", "Samples"))
    return {
        "optimizer_steps": stored["global_step"],
        "ended_early": f"not finished; to resume it: {remedy}",
        "before": measured.get("_before", {}),
        "before_step": measured.get("_before_step", 0),
        "after": measured.get("_after", {}),
        "after_step": measured.get("_after_step", 0),
        "samples": samples.get("rows", []),
    }
