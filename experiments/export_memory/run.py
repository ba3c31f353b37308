"""Memory and time of an export, on a generated checkpoint: python experiments/export_memory/run.py FOLDER

Makes a checkpoint in half precision of more than 1.2 GB and exports it in each type, each in a process of its own. A
thread of that process reads its memory from /proc every 20 ms: anonymous memory, which is what must fit, and resident
memory, which counts the pages of mapped files too. Each folder is then opened like any checkpoint, answers a prompt in
a further process, and is removed.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

from lit_sft.checkpoint.opening import find_family, open_checkpoint
from lit_sft.checkpoint.tiny import demo_texts, write_tiny
from lit_sft.families._base import TinySize

SIZE = TinySize(
    hidden_size=2048, intermediate_size=5632, num_layers=10, num_heads=16, vocab_size=32000, context_length=2048
)
TYPES = ("float32", "float16", "int8", "int4")
NUM_SAMPLES, NUM_TOKENS = 2, 40
"""The check of an export takes at most 8 of 96: less leaves its memory as it is, but for the logits."""


def memory() -> dict[str, int]:
    """kB of this process by kind."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[0] in ("RssAnon:", "RssFile:", "VmRSS:")}


def cpu_seconds() -> float:
    """Of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Watch:
    """The highest memory of each kind while it is open."""

    def __enter__(self) -> Watch:
        self.before, self.peak, self.done = memory(), memory(), threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()

    def _look(self) -> None:
        while not self.done.wait(0.02):
            for kind, size in memory().items():
                self.peak[kind] = max(self.peak[kind], size)

    def above(self, kind: str) -> int:
        """MiB."""
        return (self.peak[kind] - self.before[kind]) >> 10


def export(checkpoint: Path, output: Path, dtype: str) -> dict[str, float]:
    """Peaks in MiB above the imports, and seconds."""
    import onnxruntime  # noqa: F401
    import onnxscript.optimizer  # noqa: F401
    import torch.onnx  # noqa: F401

    from lit_sft.export import assembly, check, graph, text_side, weights  # noqa: F401
    from lit_sft.export.check import Sample
    from lit_sft.export.folder import Form, Source, export_onnx

    rows = [[*range(100 + row, 100 + row + NUM_TOKENS)] for row in range(NUM_SAMPLES)]
    samples = [Sample(row, [*[-100] * (NUM_TOKENS // 2), *row[NUM_TOKENS // 2 :]]) for row in rows]
    start, used = time.perf_counter(), cpu_seconds()
    with Watch() as watch:
        manifest = export_onnx(Source(open_checkpoint(checkpoint), samples), output, Form(dtype))
    return {
        "wall_s": round(time.perf_counter() - start),
        "cpu_s": round(cpu_seconds() - used),
        "data_MiB": manifest["files"]["model.onnx.data"]["bytes"] >> 20,
        "imports_MiB": watch.before["VmRSS"] >> 10,
        "anonymous_MiB": watch.above("RssAnon"),
        "resident_MiB": watch.above("VmRSS"),
        "logits": manifest["parity"]["max_logit_difference"],
    }


def answer(folder: Path) -> dict[str, float]:
    """Peaks in MiB above the imports, and seconds, of an exported folder that answers."""
    import onnxruntime  # noqa: F401

    from lit_sft.generation.generate import generate_ids
    from lit_sft.generation.strategies import Greedy

    start = time.perf_counter()
    with Watch() as watch:
        model = open_checkpoint(folder).load_model()
        loaded = time.perf_counter() - start
        (ids,) = generate_ids(model, [[*range(100, 140)]], Greedy(), stop=[2], room=8)
    assert ids
    return {"load_s": round(loaded, 1), "anonymous_MiB": watch.above("RssAnon"), "resident_MiB": watch.above("VmRSS")}


def in_a_process(*words: str) -> str:
    """What a step of its own prints, or how it ended."""
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr[-2000:]


def main(folder: Path, types: list[str]) -> None:
    """One line of JSON for each step of each type."""
    checkpoint = folder / "checkpoint"
    if not checkpoint.exists():
        torch.manual_seed(0)
        write_tiny(checkpoint, find_family("baichuan-7b"), demo_texts(), SIZE, 0)
    print(f"checkpoint {sum(file.stat().st_size for file in checkpoint.iterdir()) >> 20} MiB", flush=True)
    for dtype in types or TYPES:
        output = folder / dtype
        print(f"export {dtype}", in_a_process("export", str(checkpoint), str(output), dtype), flush=True)
        print(f"answer {dtype}", in_a_process("answer", str(output)), flush=True)
        shutil.rmtree(output, ignore_errors=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["export", checkpoint, output, dtype]:
            print(json.dumps(export(Path(checkpoint), Path(output), dtype)))
        case ["answer", folder]:
            print(json.dumps(answer(Path(folder))))
        case [folder, *types]:
            main(Path(folder), types)
