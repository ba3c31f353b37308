"""Small runs of policies that learn from their own answers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback
from streams import Notes, trainer_of

from lit_sft.checkpoint.opening import Checkpoint
from lit_sft.corpora.prompt_records import PromptRecords
from lit_sft.data.rollout_prompts import PromptData
from lit_sft.rewards._base import Answered, RewardFunction
from lit_sft.stages.policy import Policy
from lit_sft.stages.schedules import Constant
from lit_sft.tuning.lora import LoRA

ABOUT = "助手"
"""In place of MOSS's own instruction, which is longer than the context of a tiny checkpoint."""


class Length(RewardFunction):
    """Characters of an answer, modulo five: something that differs from answer to answer."""

    def score(self, answers: Sequence[Answered]) -> list[float | None]:
        return [float(sum(map(ord, answered.answer)) % 5) for answered in answers]


def prompts_in(folder: Path, count: int = 8, epoch: int | None = None) -> PromptRecords:
    """Short questions, all once in an epoch, or so many of them."""
    file = folder / "prompts.jsonl"
    messages = [
        [{"role": "system", "content": ABOUT}, {"role": "user", "content": f"问题{number}" + "。" * (number % 3)}]
        for number in range(count)
    ]
    file.write_text("".join(json.dumps({"messages": said}, ensure_ascii=False) + "\n" for said in messages))
    return PromptRecords(str(file), count=epoch)


def data_of(
    checkpoint: Checkpoint, folder: Path, *, count: int = 8, epoch: int | None = None, **options: Any
) -> PromptData:
    """Batches of two of eight prompts, `epoch` of them if given, answers of up to six tokens."""
    options = {"max_new_tokens": 6, "micro_batch_size": 2, "validation_fraction": 0.0, **options}
    return PromptData(
        checkpoint,
        [prompts_in(folder, count, epoch)],
        max_length=min(128, checkpoint.context_length),
        cache=str(folder / "cache"),
        **options,
    )


def policy_of(folder: Path, *, lr: float = 0.01, **options: Any) -> Policy:
    """RLOO with four answers to each prompt, in two parts."""
    torch.manual_seed(1)
    options = {"rewards": [Length()], "tuning": LoRA(rank=2), "num_answers": 4, "num_parts": 2, **options}
    return Policy(
        str(folder), optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=lr), schedule=Constant(), **options
    )


def fitted(
    stage: Any, data: PromptData, folder: Path, *callbacks: Callback, ckpt_path: Path | None = None, **options: Any
) -> dict[str, list[float]]:
    """Without validation; all values that were logged by name."""
    notes = Notes()
    options = {"max_steps": 4, "max_epochs": -1, "limit_val_batches": 0, "logger": notes, **options}
    trainer = trainer_of(*callbacks, default_root_dir=folder, **options)
    trainer.fit(stage, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return {name: [value for _, value in points] for name, points in notes.found.items()}


def trained(stage: Any) -> dict[str, torch.Tensor]:
    """The weights that train."""
    return {name: weight.detach().clone() for name, weight in stage.named_parameters() if weight.requires_grad}
