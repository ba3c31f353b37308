"""Log-probabilities of a policy before and in a training step: equal to the bit, so that their ratio is exactly 1?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from shapes import device, open_random

from lit_sft.losses.logprobs import token_log_probs
from lit_sft.tuning.lora import LoRA

SHAPE = {"real": (4, 1024), "tiny": (2, 24)}


def measure(folder: Path, size: str) -> dict[str, Any]:
    """Without a graph and with one, with gradient checkpointing and without; bfloat16 on a GPU."""
    checkpoint = open_random(folder, "Baichuan-7B", size)
    precision = "bf16-true" if device().type == "cuda" else "32-true"
    found = {}
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        tuning = LoRA()
        model = tuning.load(checkpoint, precision).train()
        network: Any = tuning.causal_lm(model)
        if is_checkpointed:
            network.activation_checkpointing_enable({"use_reentrant": False})
        ids = torch.randint(20, 1000, SHAPE[size], device=device())
        with torch.no_grad():
            before = _log_probs(network, ids)
        during = _log_probs(network, ids)
        found["checkpointed" if is_checkpointed else "plain"] = {
            "is_exactly_one": bool(torch.equal(before, during.detach())),
            "largest_difference": float((before - during.detach()).abs().max()),
        }
    return found


def _log_probs(network: Any, ids: torch.Tensor) -> torch.Tensor:
    hidden = network.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    head = network.get_output_embeddings()
    return token_log_probs(hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), head).logps
