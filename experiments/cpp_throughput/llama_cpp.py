"""llama.cpp from the source distribution of llama-cpp-python, and its files of our checkpoints."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from lit_sft.checkpoint.opening import open_checkpoint

PROGRAMS = ("llama-bench", "llama-quantize")


def built(folder: Path) -> Path:
    """The folder with the programs, built in `folder` unless they are there."""
    sources = folder / "llama.cpp-sources"
    if not sources.exists():
        options = ["--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
        _run([sys.executable, "-m", "pip", "download", *options, "llama-cpp-python"])
        with tarfile.open(next(folder.glob("llama_cpp_python-*.tar.gz"))) as archive:
            archive.extractall(sources, filter="data")
    (root,) = sources.glob("*/vendor/llama.cpp")
    target = root / "build"
    if not all((target / "bin" / name).exists() for name in PROGRAMS):
        options = [
            "-DCMAKE_BUILD_TYPE=Release",
            "-DLLAMA_CURL=OFF",
            "-DLLAMA_BUILD_TESTS=OFF",
            "-DLLAMA_BUILD_SERVER=OFF",
        ]
        _run(["cmake", "-S", str(root), "-B", str(target), "-DCMAKE_BUILD_TYPE=Release", *options])
        _run(["cmake", "--build", str(target), "--parallel", "2", "--target", *PROGRAMS])
    return target / "bin"


def gguf(programs: Path, checkpoint: Path, folder: Path, dtype: str) -> Path:
    """The checkpoint as llama.cpp reads it, made unless it is there."""
    whole = folder / "F32.gguf"
    if not whole.exists():
        converter = programs.parents[1] / "convert_hf_to_gguf.py"
        model = _as_llama(checkpoint, folder / "llama")
        _run([sys.executable, str(converter), str(model), "--outfile", str(whole), "--outtype", "f32"])
    quantized = folder / f"{dtype}.gguf"
    if not quantized.exists():
        _run([str(programs / "llama-quantize"), "--pure", str(whole), str(quantized), dtype])
    return quantized


def _as_llama(checkpoint: Path, target: Path) -> Path:
    """The same weights under the names of Llama, for the converter fails on Baichuan's (RecursionError in 0.3.36)."""
    opened = open_checkpoint(checkpoint)
    model = LlamaForCausalLM(opened.family.native_config(opened.family.network_config))
    model.load_state_dict(opened.load_model(torch.float32).state_dict())
    model.save_pretrained(target)
    shutil.copy(checkpoint / "tokenizer.model", target)
    return target


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        sys.exit(f"{' '.join(command)}:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
