"""DPO and reward models by this project, by TRL and by a bare loop, in turns; results.json and a table.

python experiments/preference_throughput/run.py
python experiments/preference_throughput/run.py --only dpo-packed trl-dpo --steps 10 --repetitions 1
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
TRAINING = HERE.parent / "training_throughput"
sys.path.insert(0, str(TRAINING))

import numpy as np  # noqa: E402
from inputs import SIZES, _draw, _write_checkpoint  # noqa: E402

KINDS = ("dpo", "reward")
NAMES = [name for kind in KINDS for name in (f"{kind}-packed", f"{kind}-grouped", f"trl-{kind}", f"bare-{kind}")]


def write_inputs(folder: Path, num_pairs: int, seed: int) -> None:
    """A Llama of 20 million weights, and pairs: two conversations give a prompt and two answers."""
    size = SIZES["20m"]
    rng = np.random.default_rng(seed)
    drawn = _draw(rng, 2 * num_pairs, size.row_length // 2)
    pairs = []
    for first, second in zip(drawn[::2], drawn[1::2], strict=True):
        prompt = first.input_ids[1 : first.num_prompt - 1]
        pairs.append((prompt, first.input_ids[first.num_prompt : -1], second.input_ids[second.num_prompt : -1]))
    (folder / "pairs.json").write_text(json.dumps(pairs))
    rows = [
        {
            name: " ".join(f"w{token}" for token in ids)
            for name, ids in zip(("prompt", "chosen", "rejected"), pair, strict=True)
        }
        for pair in pairs
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _write_checkpoint(folder / "model", size, seed)


def contestant(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What one of them measured, in a process of its own."""
    arguments = {
        "folder": str(folder),
        "steps": options.steps,
        "pairs_of_a_step": options.pairs,
        "learning_rate": options.learning_rate,
        "seed": options.seed,
    }
    path = os.pathsep.join([str(REPOSITORY), str(HERE), str(TRAINING), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(HERE / "contestants.py"), name, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Medians, and the ratios to TRL and to the bare loop of the same kind, in seconds of the processor.

    A few dozen pairs of very different lengths are drawn by each: what is compared is the time of a token of theirs,
    padding not counted, which is that of a pair of mean length.
    """
    seconds = {name: statistics.median(run["cpu_s"] / run["tokens"] for run in found) for name, found in runs.items()}
    pair = sum(run["tokens"] for found in runs.values() for run in found) / sum(
        run["pairs"] for found in runs.values() for run in found
    )
    memory = {name: statistics.median(run["memory_mib"] for run in found) for name, found in runs.items()}
    lines = [
        f"| contestant | CPU ms/pair of {pair:.0f} tokens | memory MiB "
        "| time / TRL's | memory / TRL's | pairs/s / the bare | losses |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in runs.items():
        peer, bare = (f"{kind}-{'reward' if 'reward' in name else 'dpo'}" for kind in ("trl", "bare"))
        to_peer = f"{seconds[name] / seconds[peer]:.2f} | {memory[name] / memory[peer]:.2f}" if peer in runs else " | "
        to_bare = f"{seconds[bare] / seconds[name]:.2f}" if bare in runs else ""
        losses = found[0]["losses"]
        shown = f"{losses[0]:.3f}, {sum(losses[-5:]) / len(losses[-5:]):.3f}"
        time = 1000 * seconds[name] * pair
        lines.append(f"| {name} | {time:.0f} | {memory[name]:,.0f} | {to_peer} | {to_bare} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=NAMES, choices=NAMES, metavar="NAME", help=" ".join(NAMES))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=8, help="pairs of a step")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        write_inputs(Path(name), max(200, 3 * options.pairs * options.steps), options.seed)
        for _ in range(options.repetitions):
            for contestant_name in options.only:
                runs.setdefault(contestant_name, []).append(contestant(contestant_name, Path(name), options))
                (HERE / "results.json").write_text(json.dumps(runs) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
