"""Sample answers during validation, as text in TensorBoard."""

from __future__ import annotations

import html

from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lit_sft.conversation import Prompt
from lit_sft.data.datamodule import SFTData
from lit_sft.generation.generate import Answer
from lit_sft.stages.sft import SFT


class Samples(Callback):
    """Answers the first prompts of the validation split after each validation, the first time before training.

    Args:
        count: Prompts to answer; 0 for none.
    """

    def __init__(self, count: int = 4) -> None:
        self.count = count
        self.prompts: list[Prompt] = []
        self.before: list[Answer] = []
        self.after: list[Answer] = []

    def on_validation_end(self, trainer: Trainer, pl_module: SFT) -> None:  # type: ignore[override]
        """Generate, keep the first and the latest answers, and log them."""
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it, but does not declare it
        if trainer.state.fn != "fit" or not isinstance(data, SFTData) or not self.count:
            return
        self.prompts = self.prompts or data.held_out_prompts(self.count)
        if not self.prompts:
            return
        self.after = pl_module.answer(self.prompts)
        self.before = self.before or self.after
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("samples", _table(self.prompts, self.after), trainer.global_step)


def _table(prompts: list[Prompt], answers: list[Answer]) -> str:
    """A Markdown table; what people and models wrote is shown, never interpreted."""
    rows = [
        f"| {_cell(prompt.text)} | {_cell(answer.text)} | {_cell(prompt.reference or '')} | {answer.finish_reason} |"
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return "\n".join(["| prompt | answer | reference | finish |", "|---|---|---|---|", *rows])


def _cell(text: str) -> str:
    escaped = html.escape(text)
    for mark in "\\`*_{}[]()#+-.!|~":
        escaped = escaped.replace(mark, f"&#{ord(mark)};") if mark not in "#" else escaped
    return escaped.replace("\n", "<br>")
