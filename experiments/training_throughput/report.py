"""Tables and the plot of what was measured: `report.py [results.json]` makes them again."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

SMOOTHED = 5
"""Steps of which a point of the plot is the mean."""

Runs = dict[str, list[dict[str, Any]]]


def text(results: dict[str, Any]) -> str:
    """All tables that there are results for."""
    parts = [json.dumps(results["machine"])]
    if "inputs" in results:
        parts.append(json.dumps(results["inputs"]))
    if results.get("runs"):
        parts.append(_table(training(results["runs"])))
        if beside := ratios(results["runs"], "gpu" in results["machine"]):
            parts.append(_table(beside))
    if "clock" in results:
        parts.append(_table(clocked(results["clock"])))
    if "startup" in results:
        parts.append(_table([{f"{name} s": median(seconds) for name, seconds in results["startup"].items()}]))
    return "\n\n".join(parts)


def training(runs: Runs) -> list[dict[str, Any]]:
    """A row for each contestant: medians of its runs."""
    return [
        {
            "contestant": name,
            "loop s": _median(found, lambda run: run["wall_s"]),
            "CPU s": _median(found, lambda run: run["cpu_s"]),
            "tokens/step": _median(found, lambda run: run["tokens"] / run["steps"]),
            "tokens/s": _median(found, lambda run: run["tokens"] / run["wall_s"]),
            "supervised/s": _median(found, lambda run: sum(run["supervised"]) / run["wall_s"]),
            "supervised/CPU s": _median(found, lambda run: sum(run["supervised"]) / run["cpu_s"]),
            "padding %": _median(found, lambda run: 100 * (1 - run["tokens"] / run["positions"])),
            "memory MiB": _median(found, lambda run: run["memory_mib"]),
            "start s": _median(found, lambda run: run["startup_s"]),
            "runs": len(found),
            "last loss": f"{smoothed(found[0]['supervised'], found[0]['losses'])['loss'][-1]:.3f}",
            "held-out loss": f"{found[0]['held_out_loss']:.3f}",
        }
        for name, found in runs.items()
    ]


def ratios(runs: Runs, is_gpu: bool) -> list[dict[str, Any]]:
    """This project beside the best of TRL, the fastest peer and the bare loop: medians of the ratios of each turn."""
    clock = "wall_s" if is_gpu else "cpu_s"

    def supervised(run: dict[str, Any]) -> float:
        return sum(run["supervised"]) / run[clock]

    def tokens(run: dict[str, Any]) -> float:
        return run["tokens"] / run[clock]

    def memory(run: dict[str, Any]) -> float:
        return run["memory_mib"]

    def beside(name: str, other: str, value: Callable[[dict[str, Any]], float]) -> float:
        # The machine is not as fast in one turn as in another; a contestant may have had fewer.
        return median(value(own) / value(its) for own, its in zip(runs[name], runs[other], strict=False))

    peers = [name for name in runs if name.startswith("tr")]
    of_trl = [name for name in peers if name.startswith("trl-")]
    rows = []
    for name in (name for name in runs if name.startswith("fit-")):
        row: dict[str, Any] = {"contestant": name}
        if of_trl:
            fastest = max(of_trl, key=lambda peer: _median(runs[peer], supervised))
            smallest = min(of_trl, key=lambda peer: _median(runs[peer], memory))
            row["fastest of TRL"] = fastest
            row["time per supervised token / its"] = 1 / beside(name, fastest, supervised)
            row["smallest of TRL"] = smallest
            row["memory / its"] = beside(name, smallest, memory)
        if peers:
            best = max(peers, key=lambda peer: _median(runs[peer], supervised))
            row["fastest peer"] = best
            row["time / the fastest peer's"] = 1 / beside(name, best, supervised)
        if "bare" in runs:
            row["tokens/s / the bare loop's"] = beside(name, "bare", tokens)
            row["memory / the bare loop's"] = beside(name, "bare", memory)
        rows.append(row)
    return rows


def clocked(shares: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Percent of a step; `outside` is what is neither forward, backward nor optimizer."""
    rows = []
    for name, found in shares.items():
        percent = {
            part: 100 * seconds / found["all"] for part, seconds in found.items() if part not in ("steps", "all")
        }
        outside = 100 - percent["forward"] - percent["backward"] - percent["optimizer"]
        rest = outside - percent["gradients"] - percent["data"]
        row: dict[str, Any] = {"contestant": name, "step s": found["all"] / found["steps"]}
        row |= {f"{part} %": share for part, share in percent.items()}
        rows.append({**row, "rest %": rest, "outside %": outside})
    return rows


def plot(results: dict[str, Any], file: Path) -> None:
    """Loss against supervised tokens seen and against steps, of the first run of each contestant."""
    if not results.get("runs"):
        return
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(12, 5), sharey=True)
    for name, (run, *_) in results["runs"].items():
        curve = smoothed(run["supervised"], run["losses"])
        for axes, places in zip(panels, ("tokens", "steps"), strict=True):
            axes.plot(curve[places], curve["loss"], label=name, linestyle="--" if name.startswith("tr") else "-")
    for axes, label in zip(panels, ("supervised tokens seen", "optimizer steps"), strict=True):
        axes.set(xlabel=label, ylabel=f"loss, mean of {SMOOTHED} steps")
        axes.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(file, dpi=100, bbox_inches="tight")
    pyplot.close(figure)


def smoothed(counts: list[int], losses: list[float]) -> dict[str, list[float]]:
    """Means over the tokens of so many steps, and the middle of these steps."""
    curve: dict[str, list[float]] = {"tokens": [], "steps": [], "loss": []}
    for start in range(max(1, len(counts) - SMOOTHED + 1)):
        window = range(start, min(start + SMOOTHED, len(counts)))
        num_tokens = sum(counts[step] for step in window)
        curve["loss"].append(sum(counts[step] * losses[step] for step in window) / num_tokens)
        curve["tokens"].append(sum(counts[:start]) + num_tokens / 2)
        curve["steps"].append(start + (len(window) + 1) / 2)
    return curve


def _median(runs: list[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> float:
    return median(value(run) for run in runs)


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[_shown(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


if __name__ == "__main__":
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("results.json")
    found = json.loads(source.read_text())
    print(text(found))
    plot(found, source.with_name(source.stem.replace("results", "loss") + ".png"))
