"""Memory and time of an export, on a generated checkpoint: python experiments/export_memory/run.py FOLDER

Makes a checkpoint in half precision of more than 1.2 GB and exports it in each type, each in a process of its own. A
thread of that process reads its memory from /proc every 20 ms: anonymous memory, which is what must fit, and resident
memory, which counts the pages of mapped files too.
"""

from __future__ import annotations

import json
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
    hidden_size=1536, intermediate_size=4096, num_layers=20, num_heads=12, vocab_size=48000, context_length=2048
)
TYPES = ("float32", "float16", "int8", "int4")


def memory() -> dict[str, int]:
    """kB of this process by kind."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[0] in ("RssAnon:", "RssFile:", "VmRSS:")}


def measure(checkpoint: Path, output: Path, dtype: str) -> dict[str, float]:
    """Peaks in MiB above the imports, and seconds."""
    import onnxruntime  # noqa: F401

    from lit_sft.cli.export import _of_checkpoint
    from lit_sft.export import assembly, check, graph, text_side, weights  # noqa: F401
    from lit_sft.export.folder import Form, export_onnx

    source = _of_checkpoint(open_checkpoint(checkpoint), None, None)
    before, peak, done = memory(), memory(), threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            for kind, size in memory().items():
                peak[kind] = max(peak[kind], size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    manifest = export_onnx(source, output, Form(dtype))
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    size = sum(file["bytes"] for name, file in manifest["files"].items() if name.startswith("model.onnx"))
    return {
        "seconds": round(seconds),
        "graph_MiB": size >> 20,
        "imports_MiB": before["VmRSS"] >> 10,
        "anonymous_MiB": (peak["RssAnon"] - before["RssAnon"]) >> 10,
        "resident_MiB": (peak["VmRSS"] - before["VmRSS"]) >> 10,
        "logits": manifest["parity"]["max_logit_difference"],
    }


def main(folder: Path) -> None:
    """One line of JSON for each type."""
    checkpoint = folder / "checkpoint"
    if not checkpoint.exists():
        torch.manual_seed(0)
        write_tiny(checkpoint, find_family("baichuan-7b"), demo_texts(), SIZE, 0)
    print(f"checkpoint {sum(file.stat().st_size for file in checkpoint.iterdir()) >> 20} MiB", flush=True)
    for dtype in TYPES:
        words = [sys.executable, __file__, str(checkpoint), str(folder / dtype), dtype]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        print(dtype, done.stdout.strip() or done.stderr[-2000:], flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(json.dumps(measure(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])))
    else:
        main(Path(sys.argv[1]))
