"""Tokens a second and memory of the C++ program beside llama.cpp and torch, on the same weights, turn by turn.

    make cpp
    python experiments/cpp_throughput/run.py /tmp/throughput --size 134m --rounds 9

The checkpoint is a random Baichuan-7B of a smaller shape, which is Llama's. llama.cpp is built from the source
distribution of llama-cpp-python (some ten minutes) unless --llama_cpp names a folder of its programs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from llama_cpp import PROGRAMS, built, gguf

from lit_sft.checkpoint.opening import find_family, open_checkpoint
from lit_sft.checkpoint.tiny import demo_texts, write_tiny
from lit_sft.cli.export import _of_checkpoint
from lit_sft.export.folder import Form, export_onnx
from lit_sft.families._base import TinySize

ROOT = Path(__file__).parents[2]
PROMPT, ANSWER = 128, 64
"""Tokens."""


def _size(width: int, inner: int, num_layers: int, num_heads: int) -> TinySize:
    return TinySize(width, inner, num_layers, num_heads, vocab_size=32000, context_length=2048)


SIZES = {
    "tiny": _size(256, 704, 4, 4),
    "134m": _size(768, 2048, 12, 12),
    "664m": _size(1536, 4096, 20, 12),
}

PAIRS = {"float32": "F32", "int8": "Q8_0", "int4": "Q4_0"}
"""Our type and that of llama.cpp."""


class Speed(NamedTuple):
    """Prompt and answer tokens a second, and the most memory of the process in MiB."""

    prefill: float
    decode: float
    peak: float


def main() -> None:
    """Make what is not there, measure in turns, print a table of medians."""
    options = _options()
    folder = options.folder / options.size
    folder.mkdir(parents=True, exist_ok=True)
    programs = options.llama_cpp or built(options.folder)
    checkpoint = folder / "checkpoint"
    if not checkpoint.exists():
        write_tiny(checkpoint, find_family("baichuan-7b"), demo_texts(), SIZES[options.size], 0)
    contestants: dict[str, Callable[[], Speed]] = {}
    for ours, theirs in PAIRS.items():
        if ours in options.types:
            contestants[f"lit-sft {ours}"] = _ours(options, checkpoint, folder / ours, ours)
            contestants[f"llama.cpp {theirs}"] = _theirs(options, programs, gguf(programs, checkpoint, folder, theirs))
    if "torch" in options.types:
        contestants["torch float32"] = _torch(options, checkpoint)
    found: dict[str, list[Speed]] = defaultdict(list)
    for turn in range(options.rounds):
        for name, measure in contestants.items():
            found[name].append(measure())
            speed = found[name][-1]
            print(f"{turn} {name}: prefill {speed.prefill:.0f}, decode {speed.decode:.1f}", flush=True)
    print(_table(found, {f"lit-sft {ours}": _needed(folder / ours) for ours in options.types if ours in PAIRS}))


def _ours(options: argparse.Namespace, checkpoint: Path, output: Path, dtype: str) -> Callable[[], Speed]:
    if not output.exists():
        export_onnx(_of_checkpoint(open_checkpoint(checkpoint), None, None), output, Form(dtype))
    command = [str(options.program), "bench", "--model", str(output), "--threads", str(options.threads), "--quiet"]
    command += ["--rounds", "1", "--prompt_tokens", str(PROMPT), "--answer_tokens", str(ANSWER)]

    def measure() -> Speed:
        said, peak = _run(command)
        row = json.loads(said)
        return Speed(row["prefill_tokens_per_s"], row["decode_tokens_per_s"], peak)

    return measure


def _theirs(options: argparse.Namespace, programs: Path, model: Path) -> Callable[[], Speed]:
    command = [str(programs / "llama-bench"), "-m", str(model), "-t", str(options.threads), "-r", "1", "-o", "json"]

    def measure() -> Speed:
        prompt, prompt_peak = _run([*command, "-p", str(PROMPT), "-n", "0"])
        answer, answer_peak = _run([*command, "-p", "0", "-n", str(ANSWER), "-d", str(PROMPT)])
        (prefill,), (decode,) = json.loads(prompt), json.loads(answer)
        return Speed(prefill["avg_ts"], decode["avg_ts"], max(prompt_peak, answer_peak))

    return measure


def _torch(options: argparse.Namespace, checkpoint: Path) -> Callable[[], Speed]:
    torch.set_num_threads(options.threads)
    model = open_checkpoint(checkpoint).load_model(torch.float32)
    ids = torch.randint(20, 1000, (1, PROMPT))

    def seconds(num_new: int) -> float:
        began = time.perf_counter()
        model.generate(ids, max_new_tokens=num_new, min_new_tokens=num_new, do_sample=False)
        return time.perf_counter() - began

    def measure() -> Speed:
        reading = seconds(1)
        return Speed(PROMPT / reading, (ANSWER - 1) / (seconds(ANSWER) - reading), math.nan)

    return measure


def _run(command: list[str]) -> tuple[str, float]:
    """What a program prints, and the most memory that it had, MiB."""
    peak = 0.0
    environment = {**os.environ, "LIT_SFT_ORT": _runtime()}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
    ) as process:
        while process.returncode is None:
            try:
                output, errors = process.communicate(timeout=0.05)
            except subprocess.TimeoutExpired:
                # What wait4 says counts this process, too, which it was forked from.
                status = Path(f"/proc/{process.pid}/status").read_text()
                peak = max([peak, *(int(line.split()[1]) / 1024 for line in status.splitlines() if "VmHWM" in line)])
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{errors[-2000:]}")
    return output, peak


def _needed(folder: Path) -> float:
    """Weights, and a cache with room for the tokens that are measured, MiB."""
    layers = json.loads((folder / "generation.json").read_text())["layers"]
    room = 1 << (PROMPT + ANSWER - 1).bit_length()
    cache = sum(layer["num_heads"] * (layer["key_dim"] + layer["value_dim"]) * room * 4 for layer in layers)
    return ((folder / "model.onnx.data").stat().st_size + cache) / 2**20


def _runtime() -> str:
    import onnxruntime

    return str(Path(onnxruntime.__file__).parent / "capi")


def _table(found: dict[str, list[Speed]], needed: dict[str, float]) -> str:
    medians = {name: Speed(*map(statistics.median, zip(*speeds, strict=True))) for name, speeds in found.items()}
    lines = ["| | prefill, tokens/s | decode, tokens/s | beside llama.cpp | memory, MiB | beyond weights and cache |"]
    lines.append("|---|---|---|---|---|---|")
    for name, speed in medians.items():
        program, _, dtype = name.partition(" ")
        other = medians.get(f"llama.cpp {PAIRS[dtype]}") if program == "lit-sft" else None
        ratios = f"{speed.prefill / other.prefill:.2f}, {speed.decode / other.decode:.2f}" if other else ""
        beyond = f"{speed.peak - needed[name]:.0f}" if name in needed else ""
        lines.append(f"| {name} | {speed.prefill:.0f} | {speed.decode:.1f} | {ratios} | {speed.peak:.0f} | {beyond} |")
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for checkpoints, exports and llama.cpp; some GB")
    parser.add_argument("--size", choices=SIZES, default="134m")
    parser.add_argument("--types", nargs="+", choices=[*PAIRS, "torch"], default=[*PAIRS, "torch"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--program", type=Path, default=ROOT / "build" / "cpp" / "lit-sft")
    parser.add_argument("--llama_cpp", type=Path, help=f"folder with {', '.join(PROGRAMS)} and convert_hf_to_gguf.py")
    return parser.parse_args()


if __name__ == "__main__":
    main()
