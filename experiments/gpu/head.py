"""Head and loss of a large vocabulary: ours beside liger and cut cross entropy, where they are installed."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from shapes import device, synchronize
from torch import Tensor, nn

from lit_sft.losses.fused_head import head_cross_entropy

SIZES = {"real": (8192, 4096, 64000), "tiny": (64, 32, 500)}
"""Tokens, width, vocabulary."""

REPETITIONS = 5


def measure(folder: Path, size: str) -> dict[str, Any]:
    """Milliseconds and GB of forward and backward, and the loss, of each way."""
    torch.manual_seed(0)
    num_tokens, width, vocabulary = SIZES[size]
    dtype = torch.bfloat16 if device().type == "cuda" else torch.float32
    hidden = torch.randn(num_tokens, width, device=device(), dtype=dtype)
    head = nn.Linear(width, vocabulary, bias=False, device=device(), dtype=dtype).requires_grad_(False)
    targets = torch.randint(0, vocabulary, (num_tokens,), device=device())
    return {name: _timed(way, hidden, head, targets) for name, way in _ways().items()}


def _ways() -> dict[str, Callable[[Tensor, nn.Linear, Tensor], Tensor]]:
    ways: dict[str, Callable[[Tensor, nn.Linear, Tensor], Tensor]] = {"ours": _ours, "plain": _plain}
    if find_spec("liger_kernel"):
        ways["liger"] = _liger
    if find_spec("cut_cross_entropy"):
        ways["cut_cross_entropy"] = _cut
    return ways


def _timed(
    way: Callable[[Tensor, nn.Linear, Tensor], Tensor], hidden: Tensor, head: nn.Linear, targets: Tensor
) -> dict[str, float]:
    states = hidden.detach().requires_grad_()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    for repetition in range(REPETITIONS + 1):
        if repetition == 1:  # the first chooses kernels
            synchronize()
            began = time.perf_counter()
        states.grad = None
        loss = way(states, head, targets)
        loss.backward()
    synchronize()
    assert states.grad is not None
    found = {
        "milliseconds": 1000 * (time.perf_counter() - began) / REPETITIONS,
        "loss": float(loss.detach()) / len(targets),
        "gradient": float(states.grad.float().norm()),
    }
    if torch.cuda.is_available():
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def _ours(states: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    return head_cross_entropy(states, targets, head)[0]


def _plain(states: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(head(states).float(), targets, reduction="sum")


def _liger(states: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss: Tensor = LigerFusedLinearCrossEntropyLoss(reduction="sum")(head.weight, states, targets)
    return loss


def _cut(states: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    loss: Tensor = linear_cross_entropy(states, head.weight, targets, reduction="sum")
    return loss
