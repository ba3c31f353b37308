"""The states of all random number generators that a training step may draw from."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_state(device: torch.device) -> dict[str, Any]:
    """The states in plain types, which a checkpoint can hold without code in it."""
    version, words, gauss = random.getstate()
    of_numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - the one that others draw from
    return {
        "python": [version, list(words), gauss],
        "numpy": {**of_numpy, "state": {**of_numpy["state"], "key": of_numpy["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Go on with the numbers that would have come."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    of_numpy = state["numpy"]
    key = np.array(of_numpy["state"]["key"], dtype=np.uint32)
    np.random.set_state({**of_numpy, "state": {**of_numpy["state"], "key": key}})  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
