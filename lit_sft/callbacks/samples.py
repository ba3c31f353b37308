"""Sample answers during validation, as text in TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence

from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lit_sft.callbacks._before_after import BeforeAfter
from lit_sft.conversation import Prompt
from lit_sft.data._asking import AskingData
from lit_sft.display import as_markdown
from lit_sft.errors import ConfigError
from lit_sft.stages._answering import Answering


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
        return True


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; what people and models wrote is shown, never interpreted."""
    lines = [columns, ["---"] * len(columns), *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(text: str) -> str:
    """Text as it is, a line break as one."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "<br>".join(map(as_markdown, lines))
