"""The verb runs: a table of what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_sft.cli.summary import content_of
from lit_sft.errors import ConfigError, UserError
from lit_sft.runs.folder import CONFIG, LAST_CHECKPOINT, MANIFEST, SUMMARY, is_run, read_config
from lit_sft.runs.lock import is_locked
from lit_sft.runs.table import Row, render


def runs(runs: str = "runs") -> None:
    """Print a table of the runs, the one that began last at the end.

    Args:
        runs: Where runs are looked for.
    """
    folder = Path(runs)
    found = [path for path in folder.glob("*") if is_run(path)]
    if not found:
        raise ConfigError(f"no run in {folder}/. Train one with `fit --config configs/...yaml`, or name their folder")
    found.sort(key=lambda run: (run / CONFIG).stat().st_mtime)
    print(render(list(map(_row, found))))  # noqa: T201


def _row(run: Path) -> Row:
    try:
        return _read(run)
    except (ValueError, LookupError, TypeError, OSError, UserError):  # one damaged run hides no other
        return Row(run.name, "damaged", num_bytes=_size_of(run))


def _read(run: Path) -> Row:
    manifest = json.loads((run / MANIFEST).read_text(encoding="utf-8"))
    content = content_of(run) if (run / SUMMARY).is_file() or (run / LAST_CHECKPOINT).is_file() else {}
    stage, tuning = _trained(run)
    metric = next(iter(content.get("metrics") or {"val/loss": "loss"}))
    return Row(
        name=run.name,
        state=_state(run, content),
        step=content.get("optimizer_steps"),
        metric=metric.removeprefix("val/"),
        before=content.get("before", {}).get(metric),
        after=content.get("after", {}).get(metric),
        stage=stage,
        tuning=tuning,
        family=manifest["family"],
        num_bytes=_size_of(run),
    )


def _state(run: Path, content: dict[str, Any]) -> str:
    if is_locked(run):
        return "running"
    if (run / SUMMARY).is_file():
        return "ended early" if content.get("ended_early") else "finished"
    return "stopped" if content else "failed"


def _trained(run: Path) -> tuple[str, str]:
    """Names of the classes of stage and tuning."""
    model = read_config(run)["model"]
    return _class_name(model), _class_name(model["init_args"]["tuning"])


def _class_name(node: dict[str, Any]) -> str:
    return str(node["class_path"]).rpartition(".")[2]


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
