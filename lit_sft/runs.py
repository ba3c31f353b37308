"""Run folders: `runs/<name>/` holds everything that one `fit` was made of and made.

config.yaml       resolved configuration; `fit --config` on it repeats the run
manifest.json     versions, git commit, seed, fingerprints of tokenizer and data
summary.json      held-out metrics and sample answers, before and after
quarantine.jsonl  records that were skipped or repaired, with file:line and reason
tensorboard/      curves and sample answers
checkpoints/      last.ckpt and best.ckpt: what trained, optimizer, schedule
adapter/, model/  what trained in the standard format: PEFT adapter, or whole model
predictions.jsonl answers of the last `predict`
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from lit_sft.errors import ConfigError

CONFIG = "config.yaml"
MANIFEST = "manifest.json"
SUMMARY = "summary.json"
QUARANTINE = "quarantine.jsonl"
PREDICTIONS = "predictions.jsonl"
LAST_CHECKPOINT = "checkpoints/last.ckpt"


def new_run(runs: Path, name: str, started: datetime) -> Path:
    """A folder name that no run has yet: `<name>-<date>-<time>`, counted on if two start in one second."""
    base = runs / f"{name}-{started:%Y%m%d-%H%M%S}"
    candidate, number = base, 1
    while candidate.exists():
        number += 1
        candidate = base.with_name(f"{base.name}-{number}")
    return candidate


def newest_run(runs: Path) -> Path:
    """The run that started last and got as far as a checkpoint.

    Raises:
        ConfigError: If there is none, saying what to give instead.
    """
    finished = [
        folder for folder in runs.glob("*") if (folder / CONFIG).is_file() and (folder / LAST_CHECKPOINT).is_file()
    ]
    if not finished:
        raise ConfigError(
            f"no run with a checkpoint in {runs}/. Train one with `fit --config configs/...yaml`, "
            "name one with --run DIR, or answer with a base model: --config configs/...yaml"
        )
    return max(finished, key=lambda folder: (folder / CONFIG).stat().st_mtime)


def write_json(path: Path, content: Any) -> None:
    """Write under a temporary name and rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
