"""PPO on the network of every family, with both kinds of adapters: what is rewarded becomes more frequent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import pytest
import torch
from policies import data_of, fitted

from lit_sft.checkpoint.opening import Checkpoint
from lit_sft.rewards._base import Answered, RewardFunction
from lit_sft.stages.ppo import PPO
from lit_sft.stages.schedules import Constant
from lit_sft.tuning._base import Tuning
from lit_sft.tuning.lora import LoRA
from lit_sft.tuning.qlora import QLoRA


class Share(RewardFunction):
    """Share of an answer's characters whose code is even."""

    def score(self, answers: Sequence[Answered]) -> list[float | None]:
        codes = [[ord(character) % 2 for character in answered.answer] for answered in answers]
        return [1 - mean(found) if found else 0.5 for found in codes]


@pytest.mark.parametrize("tuning", [LoRA(rank=4), QLoRA(rank=4)], ids=["lora", "qlora"])
def test_what_is_rewarded_becomes_more_frequent(checkpoint: Checkpoint, tmp_path: Path, tuning: Tuning) -> None:
    torch.manual_seed(1)
    stage = PPO(
        str(checkpoint.path),
        tuning,
        family=checkpoint.family.name,
        rewards=[Share()],
        num_answers=16,
        num_parts=1,
        num_iterations=2,
        beta=0.01,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.02),
        schedule=Constant(),
    )
    data = data_of(checkpoint, tmp_path, max_new_tokens=4)
    _, found = fitted(stage, data, tmp_path, max_steps=16, accumulate_grad_batches=2, gradient_clip_val=1.0)
    rewards = found["train/reward"][::2]
    assert mean(rewards[-2:]) > mean(rewards[:2]) + 0.1, rewards
