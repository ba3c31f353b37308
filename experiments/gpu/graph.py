"""An exported graph of every family on the CUDA provider beside the CPU's, prompt and further tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_sft.__main__ import main
from lit_sft.checkpoint.onnx_session import GraphSession

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
FAMILIES = {"real": ("baichuan-7b", "baichuan-13b", "moss-16b", "chatglm-6b", "chatglm2-6b"), "tiny": ("baichuan-7b",)}
NUM_NEW = 8


def measure(folder: Path, size: str) -> dict[str, Any]:
    """By family and form: the largest difference of logits, on a GPU; on a CPU that of the same graph again."""
    found = {}
    for name in FAMILIES[size]:
        for form in ("fused", "portable"):
            exported = folder / f"{name}-{form}"
            words = ["export", "--checkpoint", str(GOLDEN / name / "checkpoint"), "--output", str(exported)]
            if main(words + ["--portable"] * (form == "portable")):
                raise RuntimeError(f"{name} was not exported")
            found[f"{name} {form}"] = _difference(exported)
    return found


def _difference(exported: Path) -> float:
    one, other = GraphSession(exported), GraphSession(exported)
    if torch.cuda.is_available():
        other.session.set_providers(["CUDAExecutionProvider"])
        assert other.session.get_providers()[0] == "CUDAExecutionProvider", "onnxruntime-gpu is not installed"
    rows = [[*range(20, 30)], [*range(30, 36)]]
    caches = [session.new_cache(len(rows)) for session in (one, other)]
    largest = 0.0
    for _ in range(NUM_NEW):
        logits, others = (session.forward(rows, cache) for session, cache in zip((one, other), caches, strict=True))
        largest = max(largest, float(np.abs(logits - others).max()))
        rows = [[int(token)] for token in logits[:, -1].argmax(-1)]
    return largest
