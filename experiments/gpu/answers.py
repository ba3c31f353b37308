"""Tokens a second of answers: greedy by batch, and several drawn to each prompt as reinforcement learning does."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from shapes import device, open_random, synchronize

from lit_sft.generation.generate import generate_ids
from lit_sft.generation.rollouts import RolloutSampler
from lit_sft.generation.strategies import Greedy

NUM_NEW = {"real": 128, "tiny": 8}
PROMPT_LENGTH = {"real": 256, "tiny": 12}
BATCHES = {"real": (1, 8, 32, 128), "tiny": (1, 3)}
NUM_ANSWERS = 8
UNUSED = 3
"""A token that random weights hardly ever choose: answers are as long as they may be."""


def measure(folder: Path, size: str) -> dict[str, Any]:
    """Of Baichuan-7B in bfloat16."""
    torch.manual_seed(0)
    network: Any = open_random(folder, "Baichuan-7B", size).load_model(
        dtype=torch.bfloat16 if device().type == "cuda" else torch.float32
    )
    room = NUM_NEW[size]

    def greedy(num_prompts: int) -> int:
        answers = generate_ids(
            network, _prompts(num_prompts, size), Greedy(max_new_tokens=room), stop=[UNUSED], room=room
        )
        return sum(map(len, answers))

    def drawn(num_prompts: int) -> int:
        sampler = RolloutSampler(NUM_ANSWERS, room, token_budget=1 << 20)
        prompts = _prompts(num_prompts, size)
        found = sampler.sample(network, prompts, numbers=range(num_prompts), rollout=0, stop_token_ids=[UNUSED])
        return sum(answer.num_tokens for of_prompt in found for answer in of_prompt)

    greedy(1)  # chooses kernels
    return {
        "greedy": {str(n): _per_second(greedy, n) for n in BATCHES[size]},
        f"{NUM_ANSWERS} drawn to each": {str(n): _per_second(drawn, n) for n in BATCHES[size][:-1]},
    }


def _prompts(count: int, size: str) -> list[list[int]]:
    return torch.randint(20, 1000, (count, PROMPT_LENGTH[size]), generator=torch.Generator().manual_seed(0)).tolist()


def _per_second(answered: Callable[[int], int], num_prompts: int) -> float:
    synchronize()
    began = time.perf_counter()
    num_tokens = answered(num_prompts)
    synchronize()
    return num_tokens / (time.perf_counter() - began)
