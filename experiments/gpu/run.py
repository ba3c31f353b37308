"""The first minutes on a GPU: every open question, the most important first, each in a process of its own.

    python experiments/gpu/run.py --plan                # what would run, and for how long at most
    python experiments/gpu/run.py --minutes 12          # on a GPU
    python experiments/gpu/run.py --parts 7b-lora head  # some parts only
    python experiments/gpu/run.py --size tiny           # the same on small networks, on a CPU: does the script work?

Results are written after each part; a part that fails or takes too long stops no other. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plan import PARTS, Part

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
PACKAGES = ("torch", "transformers", "lightning", "peft", "bitsandbytes", "trl", "liger_kernel", "onnxruntime")
MARK = "measured: "

SLOWNESS = {"real": 1, "tiny": 5}
"""By which a part may take longer: on a CPU starting alone takes a while."""


def main() -> None:
    """Read the options and run the parts."""
    options = _options()
    if options.part:
        _measure(options)
        return
    chosen = [part for part in PARTS if not options.parts or part.name in options.parts]
    if options.plan:
        print(plan(chosen, options.minutes))
        return
    deadline = time.monotonic() + 60 * options.minutes
    results: dict[str, Any] = {"size": options.size, "machine": _machine(), "parts": {}}
    with tempfile.TemporaryDirectory() as folder:
        for part in chosen:
            results["parts"][part.name] = _run(part, Path(folder), options.size, deadline - time.monotonic())
            options.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(f"{part.name}: {json.dumps(results['parts'][part.name])}", flush=True)
    failed = [name for name, found in results["parts"].items() if "failed" in found]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def plan(parts: list[Part], minutes: float) -> str:
    """A line for each part: when it begins at the latest, and what it answers."""
    lines, begins = [], 0
    for part in parts:
        fits = "" if begins + part.seconds <= 60 * minutes else "  (if earlier parts take less)"
        lines.append(f"{begins // 60:3}:{begins % 60:02}  {part.name:<18} {part.seconds:4} s  {part.question}{fits}")
        begins += part.seconds
    return "\n".join(lines)


def _run(part: Part, folder: Path, size: str, left: float) -> dict[str, Any]:
    """What a part measured, or why it did not."""
    absent = [name for name in part.needs if find_spec(name) is None]
    if absent:
        return {"skipped": f"{', '.join(absent)} not installed"}
    limit = min(part.seconds * SLOWNESS[size], left)
    if left < min(20, part.seconds):
        return {"skipped": "no time was left"}
    command = [sys.executable, str(HERE / "run.py"), "--part", part.name, "--size", size, "--folder", str(folder)]
    paths = os.pathsep.join([str(REPOSITORY), str(HERE), os.environ.get("PYTHONPATH", "")])
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=REPOSITORY, timeout=limit,
            env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {limit:.0f} s"}
    said = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not said:
        return {"failed": done.stderr.strip()[-1500:]}
    return {**json.loads(said[-1].removeprefix(MARK)), "wall_seconds": round(time.monotonic() - began, 1)}


def _measure(options: argparse.Namespace) -> None:
    """A part, in this process."""
    part = next(part for part in PARTS if part.name == options.part)
    found = importlib.import_module(part.module).measure(options.folder, options.size, **part.options)
    print(f"{MARK}{json.dumps(found)}")


def _machine() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version()}
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    found["cuda"] = torch.version.cuda
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in PARTS]
    parser.add_argument("--minutes", type=float, default=12, help="for all parts together")
    parser.add_argument("--parts", nargs="+", choices=names, metavar="PART", help=", ".join(names))
    parser.add_argument("--size", choices=["real", "tiny"], default="real")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--plan", action="store_true", help="print the parts and their times, and stop")
    parser.add_argument("--part", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
