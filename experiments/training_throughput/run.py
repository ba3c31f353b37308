"""The same training by this project, its peers and a bare loop, in turns; what it prints stands in the README.

python experiments/training_throughput/run.py                                        # everything
python experiments/training_throughput/run.py --only fit-packed trl-packed bare --steps 10 --repetitions 1
python experiments/training_throughput/run.py --size 7b --steps 20                   # on a GPU
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import report

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
NAMES = ["fit-packed", "fit-grouped", "trl-padded", "trl-grouped", "trl-packed", "trainer", "bare"]
PARTS = ["train", "clock", "startup"]
PACKAGES = ["torch", "transformers", "lightning", "accelerate", "trl"]


class FailedError(Exception):
    """A process that did not do what it should."""


def train(folder: Path, options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Every contestant once, then all again; one that fails is left out from then on."""
    names = options.only if "train" in options.parts else []
    runs: dict[str, list[Any]] = results.setdefault("runs", {})
    for repetition in range(options.repetitions):
        for name in list(names):
            try:
                runs.setdefault(name, []).append(contestant(name, folder, options))
            except FailedError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                names = [other for other in names if other != name]
                continue
            found = runs[name][-1]
            print(
                f"{repetition + 1}. {name}: {found['wall_s']:.1f} s, {found['cpu_s']:.1f} CPU s, "
                f"{found['memory_mib']:.0f} MiB, loss {found['losses'][-1]:.3f}",
                file=sys.stderr,
            )
            save(results, options)


def clock(folder: Path, options: argparse.Namespace, results: dict[str, Any]) -> None:
    """This project once more with timers inside a step."""
    for name in ("fit-packed", "fit-grouped"):
        if name in options.only:
            results.setdefault("clock", {})[name] = contestant(f"{name}-clock", folder, options)["shares"]
            save(results, options)


def startup(folder: Path, options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Seconds to the help, and to the first optimizer step of the quickstart."""
    program = [sys.executable, "-m", "lit_sft"]
    found: dict[str, list[float]] = {"help": [], "cold": [], "warm": []}
    for _ in range(options.repetitions):
        began = time.perf_counter()
        run([*program, "--help"])
        found["help"].append(time.perf_counter() - began)
    checkpoint = folder / "tiny"
    run([*program, "tiny", "--family", "baichuan-7b", "--output", str(checkpoint)])
    for repetition in range(options.repetitions):
        for which in ("cold", "warm"):
            written = folder / "first-step"
            callback = {"class_path": "clock.FirstStep", "init_args": {"path": str(written)}}
            words = {
                "model.init_args.checkpoint": str(checkpoint),
                "data.init_args.cache": str(folder / f"cache-{repetition}"),
                "runs": str(folder / "runs"),
                "trainer.callbacks": json.dumps([callback]),
            }
            given = [word for name, value in words.items() for word in (f"--{name}", value)]
            run([*program, "fit", "--config", "configs/quickstart.yaml", *given])
            found[which].append(float(written.read_text()))
    results["startup"] = found
    save(results, options)


def contestant(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What one of them measured, in a process of its own."""
    arguments = {"folder": str(folder), "size": options.size, "steps": options.steps, "seed": options.seed}
    try:
        said = run([sys.executable, str(HERE / "contestants.py"), name, json.dumps(arguments)])
    finally:
        shutil.rmtree(folder / "scratch", ignore_errors=True)
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def run(command: list[str]) -> str:
    """What a command prints; what it complains of is shown only if it fails."""
    path = os.pathsep.join([str(REPOSITORY), str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    if done.returncode:
        raise FailedError(f"{' '.join(command[:4])} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def machine() -> dict[str, Any]:
    """Where it was measured, and with what."""
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "cores": len(os.sched_getaffinity(0))}
    found["threads"] = os.environ.get("OMP_NUM_THREADS", "as many as cores")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found["processor"] = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "")
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        found["gpu"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    found["python"] = platform.python_version()
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def save(results: dict[str, Any], options: argparse.Namespace) -> None:
    """After each run, so that none is lost."""
    options.results.write_text(json.dumps(results) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=NAMES, choices=NAMES, metavar="NAME", help=" ".join(NAMES))
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--size", default="20m", choices=["20m", "7b"])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="results.json beside this file if not given")
    parser.add_argument("--add", action="store_true", help="to the results of the same size and steps that are there")
    options = parser.parse_args()
    options.results = options.results or HERE / ("results.json" if options.size == "20m" else "results-7b.json")
    settings: dict[str, Any] = {"size": options.size, "steps": options.steps, "seed": options.seed}
    before = json.loads(options.results.read_text()) if options.add and options.results.exists() else settings
    if any(before[name] != value for name, value in settings.items()):
        parser.error(f"{options.results} has other settings than {settings}")
    results = {**before, "machine": machine()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {"train", "clock"} & {*options.parts}:
            wanted = {"folder": name, "size": options.size, "num_steps": options.steps, "seed": options.seed}
            said = run([sys.executable, str(HERE / "inputs.py"), json.dumps(wanted)])
            results["inputs"] = json.loads(said.splitlines()[-1])
        for part in (train, clock, startup):
            if part.__name__ in options.parts:
                part(folder, options, results)
    print(report.text(results))
    report.plot(results, options.results.with_name(options.results.stem.replace("results", "loss") + ".png"))


if __name__ == "__main__":
    main()
