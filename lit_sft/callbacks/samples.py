"""Sample answers during validation, as text in TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lit_sft.conversation import Prompt
from lit_sft.data._asking import AskingData
from lit_sft.display import as_markdown
from lit_sft.errors import ConfigError
from lit_sft.stages._answering import Answering


class Samples(Callback):
    """Answers the first held-out prompts of `predict`: before training, after each validation, and at the end.

    Args:
        count: Prompts to answer; 0 for none.
    """

    def __init__(self, count: int = 4) -> None:
        if count < 0:
            raise ConfigError(f"samples.count is {count}; it must be at least 0")
        self.count = count
        self.prompts: list[Prompt] = []
        self.rows: list[dict[str, str | None]] = []
        """Prompt, strategy, reference, and the answers before and after."""
        self._answered_at = -1

    def state_dict(self) -> dict[str, Any]:
        """The answers, for a run that is taken up."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The answers before are those of the first start."""
        self.rows = state_dict["rows"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Answer, keep the first and the latest answers, and log them."""
        if trainer.state.fn == "fit":
            self._answer(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Answer once more if steps were made since."""
        if trainer.global_step != self._answered_at:
            self._answer(trainer, pl_module)

    def _answer(self, trainer: Trainer, stage: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it, but does not declare it
        if not isinstance(stage, Answering) or not isinstance(data, AskingData) or not self.count:
            return
        self.prompts = self.prompts or data.held_out_prompts(self.count)
        if not self.prompts:
            return
        self._answered_at = trainer.global_step
        answers = stage.answer(self.prompts)
        before = {(row["prompt"], row.get("strategy")): row["before"] for row in self.rows}
        self.rows = [
            {
                "prompt": prompt.text,
                "strategy": strategy,
                "reference": prompt.reference,
                "before": before.get((prompt.text, strategy), answer.text),
                "after": answer.text,
            }
            for prompt, by_strategy in zip(self.prompts, answers, strict=True)
            for strategy, answer in by_strategy.items()
        ]
        ends: list[str] = [answer.finish_reason for by_strategy in answers for answer in by_strategy.values()]
        columns = ("prompt", "strategy", "before", "after", "reference")
        lines = [[*(row[name] or "" for name in columns), end] for row, end in zip(self.rows, ends, strict=True)]
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("samples", table([*columns, "finish"], lines), trainer.global_step)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; what people and models wrote is shown, never interpreted."""
    lines = [columns, ["---"] * len(columns), *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(text: str) -> str:
    """Text as it is, a line break as one."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "<br>".join(map(as_markdown, lines))
