"""Packed rows beside each of their examples alone: hidden states and gradients, whichever kernel the device takes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from shapes import device, open_random
from torch import Tensor

LENGTHS = {"real": (700, 300, 24, 1000), "tiny": (7, 5, 12)}
MODELS = ("Baichuan-7B", "Baichuan-13B-Base", "moss-moon-003-base", "chatglm-6b", "chatglm2-6b")


def measure(folder: Path, size: str) -> dict[str, Any]:
    """By model and type: relative difference of hidden states and of the gradient of the embeddings."""
    torch.manual_seed(0)
    return {name: _compared(folder, name, size) for name in MODELS}


def _compared(folder: Path, name: str, size: str) -> dict[str, float]:
    # The kernel depends on heads and lengths, not on depth: a tiny network with long rows asks for the same.
    checkpoint = open_random(folder, name, "tiny")
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        network = checkpoint.load_model(dtype=dtype)
        lengths = LENGTHS[size]
        ids = torch.randint(20, 1000, (1, sum(lengths)), device=device())
        positions = torch.cat([torch.arange(n, device=device()) for n in lengths])[None]
        packed = _states_and_gradient(network, [(ids, positions)])
        starts = torch.tensor((0, *lengths)).cumsum(0).tolist()
        alone = _states_and_gradient(network, [(ids[:, a:b], None) for a, b in pairwise(starts)])
        kind = str(dtype).removeprefix("torch.")
        found |= {
            f"{kind}_{what}": float((one - other).norm() / other.norm())
            for what, one, other in zip(("states", "gradient"), packed, alone, strict=True)
        }
    return found


def _states_and_gradient(network: Any, rows: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor]:
    network.zero_grad()
    states = torch.cat(
        [
            network.get_decoder()(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
            for ids, positions in rows
        ],
        dim=1,
    )
    weight = torch.linspace(-1, 1, states.shape[-1], device=states.device, dtype=states.dtype)
    (states * weight).sum().backward()
    return states.detach().float(), network.get_input_embeddings().weight.grad.float().clone()
