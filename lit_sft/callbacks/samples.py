"""Sample answers during validation, as text beside the curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning import LightningModule, Trainer

from lit_sft.callbacks._before_after import BeforeAfter
from lit_sft.callbacks._loggers import log_table
from lit_sft.conversation import Prompt
from lit_sft.data._asking import AskingData
from lit_sft.errors import ConfigError
from lit_sft.generation.generate import Answer
from lit_sft.rewards._base import Answered
from lit_sft.stages._answering import Answering
from lit_sft.stages._rewarded import Rewarded


class Samples(BeforeAfter):
    """Answers the first held-out prompts of `predict`: before training, after each validation, and at the end.

    Args:
        count: Prompts to answer; 0 for none.
    """

    def __init__(self, count: int = 4) -> None:
        if count < 0:
            raise ConfigError(f"samples.count is {count}; it must be at least 0")
        super().__init__()
        self.count = count
        self.prompts: list[Prompt] = []

    def see(self, trainer: Trainer, stage: LightningModule) -> bool:
        """Prompt, strategy, reference, and the answers before and after."""
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it, but does not declare it
        if not isinstance(stage, Answering) or not isinstance(data, AskingData) or not self.count:
            return False
        self.prompts = self.prompts or data.held_out_prompts(self.count)
        if not self.prompts:
            return False
        found = [
            (prompt, strategy, answer)
            for prompt, by_strategy in zip(self.prompts, stage.answer(self.prompts), strict=True)
            for strategy, answer in by_strategy.items()
        ]
        before = {(row["prompt"], row.get("strategy")): row for row in self.rows}
        worth = _worth(stage, [(prompt, answer) for prompt, _, answer in found])
        rows: list[dict[str, Any]] = []
        for (prompt, strategy, answer), rewards in zip(found, worth, strict=True):
            first = before.get((prompt.text, strategy), {"before": answer.text, "rewards": {"before": rewards}})
            row = {
                "prompt": prompt.text,
                "strategy": strategy,
                "reference": prompt.reference,
                "before": first["before"],
                "after": answer.text,
            }
            if rewards:
                row["rewards"] = {"before": first["rewards"]["before"], "after": rewards}
            rows.append(row)
        self.rows = rows
        # TensorBoard squeezes columns: one that says the same in every row takes the place of the texts, and the
        # numbers of narrow ones are broken.
        columns = ["prompt", *["strategy"] * (len(stage.strategies) > 1), "before", "after", "reference"]
        lines = [
            [*(row[name] or "" for name in columns), *([_listed(rewards)] if rewards else [])]
            for row, rewards in zip(rows, worth, strict=True)
        ]
        log_table(trainer, "samples", [*columns, *(["reward"] if worth[0] else [])], lines)
        return True


def _worth(stage: Answering, answers: Sequence[tuple[Prompt, Answer]]) -> list[dict[str, float | None]]:
    """Of each answer its reward, and those that it is the sum of, by name; nothing where a stage has none."""
    if not isinstance(stage, Rewarded):
        return [{} for _ in answers]
    scores = stage.worth(
        [
            Answered(prompt.messages, answer.text, answer.finish_reason == "stop", answer.num_tokens, prompt.reference)
            for prompt, answer in answers
        ]
    )
    columns = {"reward": scores.total, **scores.by_name()}
    return [
        {name: None if math.isnan(values[row]) else float(values[row]) for name, values in columns.items()}
        for row in range(len(answers))
    ]


def _listed(rewards: dict[str, float | None]) -> str:
    """The reward, and below it those that it is the sum of."""
    total, *parts = [(name, "none" if value is None else f"{value:.3g}") for name, value in rewards.items()]
    return "\n".join([total[1], *(f"{name} {number}" for name, number in parts)])
