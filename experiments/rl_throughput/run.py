"""GRPO by this project and by TRL's GRPOTrainer, in turns: rollouts and training; results.json and a table.

python experiments/rl_throughput/run.py
python experiments/rl_throughput/run.py --steps 3 --repetitions 1
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
TRAINING, PREFERENCE = HERE.parent / "training_throughput", HERE.parent / "preference_throughput"
sys.path.insert(0, str(TRAINING))

import numpy as np  # noqa: E402
from inputs import SIZES, _draw, _write_checkpoint  # noqa: E402


def write_inputs(folder: Path, num_prompts: int, seed: int) -> int:
    """A Llama of 20 million weights, and prompts whose lengths are spread as BELLE's; tokens of the longest."""
    size = SIZES["20m"]
    drawn = _draw(np.random.default_rng(seed), num_prompts, size.row_length // 2)
    prompts = [[int(token) for token in example.input_ids[1 : example.num_prompt - 1]][:96] for example in drawn]
    (folder / "prompts.json").write_text(json.dumps(prompts))
    records = [{"prompt": " ".join(f"w{token}" for token in ids)} for ids in prompts]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    _write_checkpoint(folder / "model", size, seed)
    return max(map(len, prompts)) + 4


def contestant(name: str, folder: Path, options: argparse.Namespace, longest: int) -> dict[str, Any]:
    """What one of them measured, in a process of its own."""
    counts = ("steps", "prompts", "answers", "rows", "max_new_tokens", "seed")
    arguments = {"folder": str(folder), "longest": longest, **{key: getattr(options, key) for key in counts}}
    own = [REPOSITORY, HERE, PREFERENCE, TRAINING]
    path = os.pathsep.join([*map(str, own), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(HERE / "contestants.py"), name, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(runs: dict[str, list[dict[str, Any]]], steps: int) -> str:
    """Medians, and the ratios to TRL."""
    seconds = {name: statistics.median(run["cpu_s"] / (steps - 1) for run in found) for name, found in runs.items()}
    memory = {name: statistics.median(run["memory_mib"] for run in found) for name, found in runs.items()}
    lines = [
        "| contestant | CPU s/step | memory MiB | time / TRL's | memory / TRL's | reward |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in runs.items():
        rewards = found[0]["rewards"]
        ratios = f"{seconds[name] / seconds['trl']:.2f} | {memory[name] / memory['trl']:.2f}"
        shown = f"{rewards[0]:.2f}, {rewards[-1]:.2f}"
        lines.append(f"| {name} | {seconds[name]:.2f} | {memory[name]:,.0f} | {ratios} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=8, help="of a step")
    parser.add_argument("--answers", type=int, default=8, help="to each")
    parser.add_argument("--rows", type=int, default=16, help="answers of a micro-batch")
    parser.add_argument("--max_new_tokens", type=int, default=48)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        longest = write_inputs(Path(name), 2 * options.prompts * options.steps, options.seed)
        for _ in range(options.repetitions):
            for contestant_name in ("ours", "trl"):
                runs.setdefault(contestant_name, []).append(contestant(contestant_name, Path(name), options, longest))
                (HERE / "results.json").write_text(json.dumps(runs) + "\n")
    print(table(runs, options.steps))


if __name__ == "__main__":
    main()
