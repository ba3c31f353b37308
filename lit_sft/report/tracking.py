"""A report where its run was followed: in Weights & Biases or SwanLab, as a run of its own, for that one is over."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_sft.report.comparison import ALL, Measured
from lit_sft.runs.folder import read_config

log = logging.getLogger(__name__)


def send_report(run: Path, folder: Path, measured: Sequence[Measured]) -> None:
    """Give what `folder` holds to each of these loggers in the configuration of the run.

    The report stands by itself: one that cannot be sent is told of, and is not an error.
    """
    given = read_config(run).get("trainer", {}).get("logger") or []
    for logger in given if isinstance(given, list) else [given]:
        name = str(logger.get("class_path", "")).rpartition(".")[2] if isinstance(logger, dict) else ""
        if send := SENDERS.get(name):
            try:
                send(logger.get("init_args") or {}, run.name, folder, _figures(measured))
            except Exception as error:  # of a package and a server of others
                log.warning("the report was not given to %s (%s): it is in %s", name, error, folder)


def _figures(measured: Sequence[Measured]) -> dict[str, float]:
    """Of all prompts: METRIC/before and METRIC/after, with the strategy where there are several."""
    overall = [found for found in measured if found.category == ALL]
    several = len({found.strategy for found in overall}) > 1
    return {
        "/".join([found.metric.key, *[found.strategy] * several, side]): value
        for found in overall
        for side, value in (("before", found.difference.before), ("after", found.difference.after))
    }


def _to_wandb(options: Mapping[str, Any], name: str, folder: Path, figures: Mapping[str, float]) -> None:
    import wandb

    with wandb.init(
        project=options.get("project"),
        entity=options.get("entity"),
        dir=options.get("save_dir"),
        mode="offline" if options.get("offline") else None,
        name=f"{name} comparison",
        group=name,
        job_type="compare",
    ) as run:
        run.log({"report": wandb.Html((folder / "report.html").read_text(encoding="utf-8"), inject=False)})
        run.summary.update(dict(figures))


def _to_swanlab(options: Mapping[str, Any], name: str, folder: Path, figures: Mapping[str, float]) -> None:
    import swanlab

    kept = {
        key: value for key, value in options.items() if key in {"project", "workspace", "mode", "log_dir", "logdir"}
    }
    swanlab.init(**kept, experiment_name=f"{name} comparison")
    try:
        swanlab.log({"report": swanlab.Text((folder / "report.md").read_text(encoding="utf-8")), **figures})
    finally:
        swanlab.finish()


SENDERS = {"WandbLogger": _to_wandb, "SwanLabLogger": _to_swanlab}
"""By the name of the class, for its package may not be there."""
