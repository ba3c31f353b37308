"""What a run learned, as text for the terminal. Loads no torch: `python -m lit_sft summary` answers at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_sft.errors import ConfigError
from lit_sft.runs.folder import SUMMARY, command, newest_run

METRICS = {"val/loss": "loss", "val/perplexity": "perplexity", "val/token_accuracy": "token accuracy"}
MAX_SHOWN = 300


def summary(run: str | None = None, runs: str = "runs") -> None:
    """Print what a run learned.

    Args:
        run: Run folder; the newest one if not given.
        runs: Where runs are looked for.
    """
    folder = Path(run) if run else newest_run(Path(runs))
    file = folder / SUMMARY
    if not file.is_file():
        raise ConfigError(f"{folder} holds no {SUMMARY}: the run did not finish")
    print(render(folder, json.loads(file.read_text(encoding="utf-8"))))  # noqa: T201


def render(folder: Path, content: dict[str, Any]) -> str:
    """The summary as lines of text."""
    before, after = content["before"], content["after"]
    steps = [content["before_step"], content["after_step"]]
    before_step, after_step = [f"step {step}" if step else "before" for step in steps]
    lines = ["", f"What was learned in {content['optimizer_steps']} optimizer steps", ""]
    if after:
        lines.append(f"  {'held out':<16}{before_step:>12}{after_step:>12}")
        for key, name in METRICS.items():
            lines.append(f"  {name:<16}{_number(before.get(key)):>12}{_number(after.get(key)):>12}")
    is_one_way = len({sample.get("strategy") for sample in content["samples"]}) < 2
    for sample in content["samples"]:
        lines += ["", f"  prompt     {_one_line(sample['prompt'])}"]
        if not is_one_way:
            lines.append(f"  strategy   {_one_line(sample['strategy'])}")
        lines.append(f"  before     {_one_line(sample['before'])}")
        lines.append(f"  after      {_one_line(sample['after'])}")
        if sample["reference"] is not None:
            lines.append(f"  reference  {_one_line(sample['reference'])}")
    lines += ["", f"  run folder   {folder}", f"  curves       {command('tensorboard')} --logdir {folder.parent}", ""]
    return "\n".join(lines)


def one_line(folder: Path, content: dict[str, Any]) -> str:
    """What came of the run, and how to see more of it."""
    losses = [_number(content[when]["val/loss"]) for when in ("before", "after") if "val/loss" in content[when]]
    held_out = f", held-out loss {' -> '.join(losses)}" if losses else ""
    return f"{content['optimizer_steps']} steps{held_out}. See {command('python')} -m lit_sft summary --run {folder}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _one_line(text: str) -> str:
    """Printable characters only: what a model says must not steer a terminal."""
    line = "".join(char if char.isprintable() else " " for char in text.replace("\n", "⏎"))
    return line if len(line) <= MAX_SHOWN else line[:MAX_SHOWN] + "…"
