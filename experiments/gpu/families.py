"""Every family's recorded tiny checkpoint on the device beside the CPU, where it equals the original code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from shapes import device
from torch import Tensor

from lit_sft.checkpoint.opening import Checkpoint, open_checkpoint
from lit_sft.conversation import Conversation, Message
from lit_sft.generation.generate import generate_ids
from lit_sft.generation.strategies import Greedy

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
PROMPT = "青榆镇的渡船几点开？请只回答时间。"
NUM_NEW = 16
FAMILIES = {"baichuan-7b": "baichuan-7b"}
"""Where config.json leaves the family open."""


def measure(folder: Path, size: str) -> dict[str, Any]:
    """By family: the largest difference of logits in float32 and bfloat16, and whether greedy ids are equal."""
    return {path.parent.name: _compared(path) for path in sorted(GOLDEN.glob("*/checkpoint"))}


def _compared(folder: Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(folder, FAMILIES.get(folder.parent.name, "auto"))
    tokenizer = checkpoint.load_tokenizer()
    prompt = checkpoint.prompt_format.encode_prompt(Conversation([Message("user", PROMPT)]), tokenizer)
    stop = checkpoint.prompt_format.stop_token_ids(tokenizer)
    expected, ids = _asked(checkpoint, prompt, list(stop), torch.float32, torch.device("cpu"))
    found, device_ids = _asked(checkpoint, prompt, list(stop), torch.float32, device())
    half, _ = _asked(checkpoint, prompt, list(stop), torch.bfloat16, device())
    return {
        "float32": float((found - expected).abs().max()),
        "bfloat16": float((half - expected).abs().max()),
        "equal_ids": ids == device_ids,
    }


@torch.no_grad()
def _asked(
    checkpoint: Checkpoint, prompt: list[int], stop: list[int], dtype: torch.dtype, where: torch.device
) -> tuple[Tensor, list[list[int]]]:
    """Logits of a prompt and the greedy answer."""
    network: Any = checkpoint.load_model(dtype=dtype).to(where)
    logits = network(input_ids=torch.tensor([prompt], device=where), use_cache=False).logits
    return logits.float().cpu(), generate_ids(
        network, [prompt], Greedy(max_new_tokens=NUM_NEW), stop=stop, room=NUM_NEW
    )
