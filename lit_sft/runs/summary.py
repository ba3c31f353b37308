"""What a run learned, as text for the terminal. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_sft.display import shortened, visible
from lit_sft.runs.folder import command

MAX_SHOWN = 300


def render(folder: Path, content: dict[str, Any]) -> str:
    """The summary as lines of text."""
    before, after = content["before"], content["after"]
    before_step = f"step {content['before_step']}" if content["before_step"] else "before"
    after_step = f"step {content['after_step']}" if after else "not since"
    lines = ["", f"What was learned in {content['optimizer_steps']} optimizer steps", ""]
    if content.get("ended_early"):
        lines += [f"  {visible(content['ended_early'])}", ""]
    if before or after:
        lines.append(f"  {'held out':<16}{before_step:>12}{after_step:>12}")
        # A run of an earlier version does not say how they are called.
        named = content.get("metrics") or {key: key.removeprefix("val/") for key in {**before, **after}}
        for key, name in named.items():
            lines.append(f"  {name:<16}{_number(before.get(key)):>12}{_number(after.get(key)):>12}")
    is_one_way = len({sample.get("strategy") for sample in content["samples"]}) < 2
    for sample in content["samples"]:
        lines += ["", f"  prompt     {shortened(sample['prompt'], MAX_SHOWN)}"]
        if not is_one_way:
            lines.append(f"  strategy   {shortened(sample['strategy'], MAX_SHOWN)}")
        lines.append(f"  before     {shortened(sample['before'], MAX_SHOWN)}")
        lines.append(f"  after      {shortened(sample['after'], MAX_SHOWN)}")
        if rewards := sample.get("rewards"):
            numbers = " -> ".join(_number(rewards[when].get("reward")) for when in ("before", "after"))
            lines.append(f"  reward     {numbers}")
        if sample["reference"] is not None:
            lines.append(f"  reference  {shortened(sample['reference'], MAX_SHOWN)}")
    for pair in content.get("pairs", []):
        lines += ["", f"  prompt     {shortened(pair['prompt'], MAX_SHOWN)}"]
        for place, side in enumerate(("chosen", "rejected")):
            if pair[side] is not None:
                numbers = " -> ".join(_number(pair[when][place]) for when in ("before", "after"))
                lines += [
                    f"  {side:<10} {shortened(pair[side], MAX_SHOWN)}",
                    f"             {pair['judgment']} {numbers}",
                ]
    shown = visible(str(folder)), visible(str(folder.parent))
    lines += ["", f"  run folder   {shown[0]}", f"  curves       {command('tensorboard')} --logdir {shown[1]}", ""]
    return "\n".join(lines)


def one_line(folder: Path, content: dict[str, Any]) -> str:
    """What came of the run, and how to see more of it."""
    steps = content["optimizer_steps"]
    measured = f"{steps} steps{_held_out(content)}"
    return f"{measured}. See {command('python')} -m lit_sft summary --run {folder}"


def _held_out(content: dict[str, Any]) -> str:
    """The first metric, of the state that it was measured on, which may not be the last one."""
    key, name = next(iter((content.get("metrics") or {"val/loss": "loss"}).items()))
    before, after = (content[when].get(key) for when in ("before", "after"))
    if after is None:
        return "" if before is None else f", held-out {name} {_number(before)} before, not measured since"
    values = " -> ".join(_number(value) for value in (before, after) if value is not None)
    is_last = content["after_step"] == content["optimizer_steps"]
    return f", held-out {name} {values}" + ("" if is_last else f" at step {content['after_step']}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
