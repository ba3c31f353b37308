"""What a run was trained with and how its curves went, for a report; read from its folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_sft.files import read_object
from lit_sft.runs.folder import CURVES, SUMMARY, read_config

MAX_POINTS = 200
"""Of a curve that is drawn; of more every so many."""

Curve = list[tuple[int, float]]
"""Steps and values."""


@dataclass(frozen=True)
class Training:
    """`facts`: steps, data, optimizer, in a few words each. `curves`: by name, one measure in training and held out."""

    facts: dict[str, str] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)


def read_training(run: Path) -> Training:
    """What the folder of a run tells; parts that are not there are left out.

    Raises:
        ConfigError: If its configuration or its summary is damaged.
    """
    config = read_config(run)
    summary = read_object(run / SUMMARY) if (run / SUMMARY).is_file() else {}
    measure = next(iter(summary.get("metrics") or {"val/loss": "loss"})).removeprefix("val/")
    curves = _curves(run, (f"train/{measure}", f"val/{measure}"))
    return Training(_facts(config, summary), {name: curve for name, curve in curves.items() if len(curve) > 1})


def _facts(config: dict[str, Any], summary: dict[str, Any]) -> dict[str, str]:
    model, data = (config[part].get("init_args", {}) for part in ("model", "data"))
    trainer = config.get("trainer", {})
    optimizer = model.get("optimizer") or {}
    rows = (data.get("micro_batch_size") or 1) * (trainer.get("accumulate_grad_batches") or 1)
    facts = {
        "Steps": str(summary.get("optimizer_steps", "")),
        "Data": ", ".join(_class_name(corpus) for corpus in data.get("corpora") or []),
        "Optimizer": _class_name(optimizer),
        "Learning rate": str(optimizer.get("init_args", {}).get("lr", "")),
        "Rows of a step": f"{rows} on each device",
    }
    return {name: value for name, value in facts.items() if value}


def _class_name(member: dict[str, Any]) -> str:
    return str(member.get("class_path", "")).rpartition(".")[2]


def _curves(folder: Path, names: Sequence[str]) -> dict[str, Curve]:
    if not any(folder.glob(CURVES)):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of files that a resumed run has written
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    found = {name: events.Scalars(name) for name in names if name in events.Tags()["scalars"]}
    return {name: _thinned([(event.step, event.value) for event in curve]) for name, curve in found.items()}


def _thinned(curve: Curve) -> Curve:
    every = -(-len(curve) // MAX_POINTS)
    return [point for place, point in enumerate(curve) if place % every == 0 or place == len(curve) - 1]
