"""Recorded outputs of the original implementations, and the tiny checkpoints they were recorded from."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lit_sft import open_checkpoint
from lit_sft.checkpoint.opening import Checkpoint

GOLDEN = Path(__file__).parent / "golden"

GOLDEN_MODELS = sorted(path.parent.name for path in GOLDEN.glob("*/checkpoint"))
"""Folders with a tiny checkpoint."""

SHARED = Path(os.environ.get("LIT_SFT_SHARED", Path(__file__).parents[2] / "shared"))
"""Released sentencepiece models and samples of the corpora, which are not ours to ship; tests skip without."""


@cache
def golden_json(family: str, name: str = "golden") -> Any:
    return json.loads((GOLDEN / family / f"{name}.json").read_text(encoding="utf-8"))


@cache
def golden_tensors(family: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / family / "golden.safetensors")


def golden_checkpoint(folder: str, family: str = "auto", prompt_format: str | None = None) -> Checkpoint:
    return open_checkpoint(GOLDEN / folder / "checkpoint", family, prompt_format)


@cache
def golden_model(folder: str, family: str = "auto") -> Any:
    """The checkpoint in float32, shared by all tests of a process: leave it as it is."""
    return golden_checkpoint(folder, family).load_model(dtype=torch.float32)


def assert_equal_where(mask: torch.Tensor, actual: torch.Tensor, expected: torch.Tensor, *, atol: float = 1e-4) -> None:
    """Compare logits [B, T, V] at the positions [B, T] that hold real tokens."""
    torch.testing.assert_close(actual[mask.bool()], expected[mask.bool()], atol=atol, rtol=0)
