"""What `validate` and `test` found: a short table, and a file in the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_sft.display import visible
from lit_sft.files import write_json


def tell_measured(trainer: Any, run: str | None, name: str) -> None:
    """Print each metric with four digits; of a run, keep all digits in `RUN/NAME.json`.

    Args:
        trainer: That of Lightning, which has measured.
        run: The run folder that was measured, if it was one.
        name: The verb, and `-base` for the model before tuning.
    """
    metrics = {metric: float(value) for metric, value in sorted(trainer.callback_metrics.items())}
    if not trainer.is_global_zero or not metrics:
        return
    width = max(map(len, metrics))
    for metric, value in metrics.items():
        print(f"{visible(metric):<{width}}  {value:.4g}")  # noqa: T201
    if run:
        file = Path(run) / f"{name}.json"
        write_json(file, {"checkpoint": trainer.ckpt_path and str(trainer.ckpt_path), "metrics": metrics})
        print(f"{visible(str(file))}")  # noqa: T201
