"""What `validate` and `test` found: a short table, and a file in the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_sft.display import in_columns, visible
from lit_sft.files import write_json


def tell_measured(trainer: Any, run: str | None, name: str) -> None:
    """Print a table of the metrics with four digits; of a run, keep all digits in `RUN/NAME.json`.

    Args:
        trainer: That of Lightning, which has measured.
        run: The run folder that was measured, if it was one.
        name: The verb, and `-base` for the model before tuning.
    """
    metrics = {metric: float(value) for metric, value in sorted(trainer.callback_metrics.items())}
    if not trainer.is_global_zero or not metrics:
        return
    print("\n".join(in_columns(_rows(metrics, trainer.lightning_module.shown_metrics))))  # noqa: T201
    if run:
        file = Path(run) / f"{name}.json"
        write_json(file, {"checkpoint": trainer.ckpt_path and str(trainer.ckpt_path), "metrics": metrics})
        print(f"{visible(str(file))}")  # noqa: T201


def _rows(metrics: dict[str, float], titles: Mapping[str, str]) -> list[list[str]]:
    """A row for each metric, the shown ones first; a column for all that was held out, and one for each corpus."""
    whole = [key for key in metrics if not any(key.startswith(f"{other}/") for other in metrics)]
    corpora = sorted({key.removeprefix(f"{one}/") for one in whole for key in metrics if key.startswith(f"{one}/")})
    named = {key: _name(key, titles) for key in whole}
    order = list(titles.values())
    whole.sort(key=lambda key: order.index(named[key]) if named[key] in order else len(order))
    rows = [["held out", "all" if corpora else "", *map(visible, corpora)]]
    for key in whole:
        values = (metrics.get(f"{key}/{corpus}".removesuffix("/")) for corpus in ("", *corpora))
        rows.append([named[key], *("-" if value is None else f"{value:.4g}" for value in values)])
    return rows


def _name(key: str, titles: Mapping[str, str]) -> str:
    """`token accuracy` for `val/token_accuracy` and `test/token_accuracy`."""
    name = key.partition("/")[2] or key
    return titles.get(f"val/{name}", visible(name.replace("_", " ")))
