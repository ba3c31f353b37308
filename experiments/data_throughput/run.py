"""How fast the data layer is, and how much memory it takes; what it prints stands in the README.

python experiments/data_throughput/run.py                                   # everything, about an hour
python experiments/data_throughput/run.py --parts limit datasets --records 5000 --compared 10000
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from inputs import CHECKPOINTS, FORMATS, REPOSITORY, SHARED, expand, write_checkpoint

MIB = 1 << 20


class Bench:
    """The parts; each returns its rows.

    Args:
        options: The command line.
        folder: Temporary files.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder

    def limit(self) -> list[dict[str, Any]]:
        """CPU time of each step beside that of the bare tokenizer."""
        # Conversations of MOSS are twenty times as long.
        sizes = {layout: self.options.records // (10 if layout.startswith("moss") else 1) for layout in FORMATS}
        files = {layout: str(expand(self.options.shared, layout, size, self.folder)) for layout, size in sizes.items()}
        where = {"files": files, "folder": str(self.folder), "repetitions": self.options.repetitions}
        return [
            {"family": family, "corpus": layout, **_limit_row(runs)}
            for family in CHECKPOINTS
            for layout, runs in self._measure("limit", family, **where).items()
        ]

    def first_batch(self) -> list[dict[str, Any]]:
        """Seconds to the first batch with a fresh cache and again."""
        rows = []
        for size in self.options.sizes:
            found: dict[str, list[Any]] = {"cold": [], "warm": []}
            for _ in range(self.options.repetitions if size < MIB // 2 else 1):
                with tempfile.TemporaryDirectory(dir=self.folder) as cache:
                    for runs in found.values():
                        runs.append(self._first_batch(size, cache, num_batches=1))
            rows.append(
                {
                    "records": size,
                    "imports s": _median(runs["imports"] for runs in found["cold"]),
                    **{f"{name} s": _median(run["first_batch"] for run in runs) for name, runs in found.items()},
                }
            )
        return rows

    def memory(self) -> list[dict[str, Any]]:
        """Memory after many batches, with a fresh cache."""
        rows = []
        for size in self.options.sizes:
            with tempfile.TemporaryDirectory(dir=self.folder) as cache:
                found = self._first_batch(size, cache, num_batches=200)
            rows.append(
                {
                    "records": size,
                    "batches": found["batches"],
                    "main MiB": found["rss"] / MIB,
                    "all MiB": found["pss"] / MIB,
                    "processes": found["processes"],
                }
            )
        for row in rows:
            row["main above smallest MiB"] = row["main MiB"] - rows[0]["main MiB"]
            row["all above smallest MiB"] = row["all MiB"] - rows[0]["all MiB"]
        return rows

    def resume(self) -> list[dict[str, Any]]:
        """Seconds to go on in the last window of the largest corpus."""
        size = self.options.sizes[-1]
        with tempfile.TemporaryDirectory(dir=self.folder) as cache:
            where = {"file": str(self._belle(size)), "cache": cache, "num_workers": 2}
            state = self._measure("position", "chatglm2-6b", **where)
            runs = [
                self._measure("resume", "chatglm2-6b", state=state, **where) for _ in range(self.options.repetitions)
            ]
        return [{"records": size, **{f"{name} s": _median(run[name] for run in runs) for name in runs[0]}}]

    def datasets(self) -> list[dict[str, Any]]:
        """The same corpus the usual way, in turns."""
        rows = []
        for num_workers in (1, 2):
            found: dict[str, list[Any]] = {"ours": [], "transformers": [], "lit_sft": []}
            for _ in range(self.options.repetitions):
                for name, runs in found.items():
                    with tempfile.TemporaryDirectory(dir=self.folder) as cache:
                        file = str(self._belle(self.options.compared))
                        where: dict[str, Any] = {"file": file, "cache": cache, "num_workers": num_workers}
                        if name == "lit_sft":
                            runs.append(self._measure("ours", "chatglm2-6b", **where))
                        else:
                            runs.append(self._measure("usual", "chatglm2-6b", tokenizer_of=name, **where))
            for what in ("first_batch", "epoch"):
                with_ours, usual, ours = (_median(run[what] for run in runs) for runs in found.values())
                times = {"usual s": usual, "usual, our tokenizer s": with_ours, "ours s": ours}
                shares = {"times as fast": usual / ours, "with our tokenizer": with_ours / ours}
                rows.append({"records": self.options.compared, "processes": num_workers, "to": what, **times, **shares})
        return rows

    def wait(self) -> list[dict[str, Any]]:
        """What share of the quickstart's training time waits for data."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        program = [sys.executable, "-m", "lit_sft"]
        checkpoint, runs = self.folder / "tiny", self.folder / "runs"
        _run([*program, "tiny", "--family", "baichuan-7b", "--output", str(checkpoint)])
        words = {
            "model.init_args.checkpoint": checkpoint,
            "data.init_args.cache": self.folder / "quickstart-cache",
            "runs": runs,
            "trainer.max_epochs": self.options.epochs,
            "trainer.log_every_n_steps": 1,
            "trainer.enable_progress_bar": "false",
        }
        config = ["fit", "--config", "configs/quickstart.yaml"]
        _run([*program, *config, *(word for name, value in words.items() for word in (f"--{name}", str(value)))])
        (run,) = runs.iterdir()
        events = EventAccumulator(str(run))
        events.Reload()
        shares = [event.value for event in events.Scalars("speed/data_wait_share")]
        # The first step of each epoch waits for a new iterator: few of so short an epoch, so the mean tells more.
        return [{"steps": len(shares), "mean %": 100 * sum(shares) / len(shares), "median %": 100 * median(shares)}]

    def _first_batch(self, size: int, cache: str, num_batches: int) -> Any:
        # Rows of one make 200 batches of the smallest corpus.
        options = {"num_workers": 2, "num_batches": num_batches, "rows": 1 if num_batches > 1 else 4}
        return self._measure("first_batch", "chatglm2-6b", file=str(self._belle(size)), cache=cache, **options)

    def _belle(self, size: int) -> Path:
        return expand(self.options.shared, "belle", size, self.folder)

    def _measure(self, name: str, family: str, **arguments: Any) -> Any:
        arguments["checkpoint"] = str(write_checkpoint(self.options.shared, family, self.folder))
        script = Path(__file__).with_name("measure.py")
        return json.loads(_run([sys.executable, str(script), name, json.dumps(arguments)]).splitlines()[-1])


PARTS = ("limit", "first_batch", "memory", "resume", "datasets", "wait")


def _limit_row(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Medians of the shares; records and MB a second where each step has a processor of its own."""
    row: dict[str, Any] = {"records": int(runs[0]["records"]), "MB": runs[0]["bytes"] / 1e6}
    for name in ("sentencepiece", "encode_batch", "scan", "encode", "pack"):
        seconds = _median(run[name] for run in runs)
        row |= {f"{name} rec/s": row["records"] / seconds, f"{name} MB/s": row["MB"] / seconds}
    for limit in ("encode_batch", "sentencepiece"):
        row[f"encode+pack / {limit}"] = _median(run[limit] / (run["encode"] + run["pack"]) for run in runs)
        row[f"all / {limit}"] = _median(run[limit] / (run["scan"] + run["encode"] + run["pack"]) for run in runs)
    return row


def _median(values: Iterable[float]) -> float:
    return median(list(values))


def _run(command: list[str]) -> str:
    """What a command prints; what it complains of is shown only if it fails."""
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    # One thread each: the processes of a part share two cores.
    environment = {"OMP_NUM_THREADS": "2" if "fit" in command else "1", **os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[_shown(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--records", type=int, default=10_000, help="of each corpus in the part limit; MOSS a tenth")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--compared", type=int, default=100_000, help="records of the part datasets")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="of the quickstart in the part wait")
    parser.add_argument("--shared", type=Path, default=SHARED, help="samples and tokenizers (LIT_SFT_SHARED)")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        for part in options.parts:
            rows = getattr(bench, part)()
            print(f"\n{part}\n\n{_table(rows)}", flush=True)
            results = json.loads(options.output.read_text()) if options.output.exists() else {}
            options.output.write_text(json.dumps({**results, part: rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
