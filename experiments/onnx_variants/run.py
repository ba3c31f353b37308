"""Tokens a second of an exported graph and of changes to it, in ONNX Runtime itself, turn by turn.

    python experiments/onnx_variants/run.py /tmp/throughput/134m/int4 --threads 2 --rounds 9

The folder is one of `export --dtype int4` or `int8`, of a family with rotary angles: experiments/cpp_throughput makes
some.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import onnxruntime
from variants import rotate_inside, small_cache

PROMPT, ANSWER = 128, 64
"""Tokens."""


def main() -> None:
    """Write the variants, measure in turns, print a table of medians."""
    options = _options()
    source = options.folder / "model.onnx"
    probe = Variant(source, options.threads)  # not measured: the first session of a process is a tenth slower
    ids = np.random.default_rng(0).integers(20, 1000, (1, PROMPT + ANSWER))
    logits = probe.run(ids).logits
    changes: dict[str, Callable[[ir.Model], ir.Model]] = {
        "inner rotary": rotate_inside,
        "int8 cache": lambda model: small_cache(model, probe.largest()),
    }
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        variants = {"as exported": Variant(source, options.threads)}
        for number, (name, change) in enumerate(changes.items()):
            file = Path(scratch) / f"{number}.onnx"
            ir.save(change(ir.load(source)), file, external_data=f"{number}.data")
            variants[name] = Variant(file, options.threads)
        found: dict[str, list[Run]] = defaultdict(list)
        for turn in range(options.rounds):
            for name in [*variants][:: 1 if turn % 2 else -1]:
                found[name].append(variants[name].run(ids))
    print(_table({name: found[name] for name in variants}, logits))


class Run(NamedTuple):
    """Tokens a second, and logits [ANSWER, V] of what was written."""

    reading: float
    writing: float
    logits: Any


class Variant:
    """A graph that is ready to run, one row, its cache written in place."""

    def __init__(self, file: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        past = [each for each in self.session.get_inputs() if each.name.startswith("past.")]
        self.cache = {
            each.name: np.zeros(
                (1, each.shape[1], PROMPT + ANSWER, each.shape[3]), np.int8 if "int8" in each.type else np.float32
            )
            for each in past
        }

    def run(self, ids: Any) -> Run:
        """Read a prompt, then write the rest of `ids` [1, T] token by token."""
        for array in self.cache.values():
            array[:] = 0
        began = time.perf_counter()
        self._forward(ids[:, :PROMPT], 0)
        between = time.perf_counter()
        logits = [self._forward(ids[:, place : place + 1], place) for place in range(PROMPT, ids.shape[1])]
        ended = time.perf_counter()
        return Run(PROMPT / (between - began), ANSWER / (ended - between), np.concatenate(logits))

    def largest(self) -> dict[str, float]:
        """The largest magnitude in each part of the cache of the last run."""
        return {name: float(np.abs(array).max()) for name, array in self.cache.items()}

    def _forward(self, ids: Any, num_past: int) -> Any:
        """Logits [1, V] behind the last of `ids`."""
        num_new = ids.shape[1]
        total = num_past + num_new
        binding = self.session.io_binding()
        given = {
            "input_ids": np.ascontiguousarray(ids),
            "position_ids": np.arange(num_past, total)[None],
            "logit_positions": np.array([[num_new - 1]]),
            "seqlens_k": np.array([total - 1], np.int32),
            "total_length": np.array([total], np.int32),
        }
        for name, array in given.items():
            binding.bind_cpu_input(name, array)
        for name, array in self.cache.items():
            place = "cpu", 0, array.dtype, array.shape, array.ctypes.data
            binding.bind_input(name, *place)
            binding.bind_output(name.replace("past.", "present."), *place)
        binding.bind_output("logits", "cpu")
        self.session.run_with_iobinding(binding)
        return binding.get_outputs()[-1].numpy()[0]


def _table(found: dict[str, list[Run]], logits: Any) -> str:
    lines = [
        "| | reading, tokens/s | writing, tokens/s | beside as exported | logits off by |",
        "|---|---|---|---|---|",
    ]
    first: list[float] = []
    for name, runs in found.items():
        medians = [statistics.median(run[part] for run in runs) for part in (0, 1)]
        first = first or medians
        ratios = ", ".join(f"{own / other:.2f}" for own, other in zip(medians, first, strict=True))
        off = np.abs(runs[0].logits - logits).max() / logits.std()
        lines.append(f"| {name} | {medians[0]:.0f} | {medians[1]:.1f} | {ratios} | {off:.1e} |")
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of `export`")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--scratch", type=Path, help="where changed graphs are written; as large as the folder, each")
    return parser.parse_args()


if __name__ == "__main__":
    main()
