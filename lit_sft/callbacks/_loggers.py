"""What is not a curve, in the loggers that can show it: tables of text, and the choices by which runs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch.utils.tensorboard.summary import hparams

from lit_sft.display import as_markdown


class Curves(TensorBoardLogger):
    """TensorBoard, which sorts groups of curves by name, opens on the losses.

    The files lie in the run folder itself, for TensorBoard calls a run as the folder that they are in.
    """

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        super().__init__(folder, name="", version="", purge_step=purge_step)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Both losses once more beside each other, in a group before the others; the epoch, which Lightning adds."""
        shown = {"train/epoch" if name == "epoch" else name: value for name, value in metrics.items()}
        shown |= {f"loss/{split}": shown[f"{split}/loss"] for split in ("train", "val") if f"{split}/loss" in shown}
        super().log_metrics(shown, step)

    def save(self) -> None:
        """Lightning would write hparams.yaml, which config.yaml holds already."""
        self.experiment.flush()


def log_table(trainer: Trainer, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of text at the step that the run has reached."""
    step = trainer.global_step
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(name, table(columns, rows), step)
        elif isinstance(logger, WandbLogger):
            logger.log_table(name, list(columns), [list(row) for row in rows], step=step)
        elif type(logger).__name__ == "SwanLabLogger":  # by its name, for its package may not be there to import
            logger.log_text(name, [_card(columns, row) for row in rows], step)  # type: ignore[attr-defined]


def log_choices(trainer: Trainer, choices: Mapping[str, str | float], results: Sequence[str]) -> None:
    """What a run was made of, beside the curves whose latest points are its results."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            # The logger's own log_hyperparams would add a point to each curve.
            for part in hparams(dict(choices), dict.fromkeys(results, 0.0)):
                logger.experiment._get_file_writer().add_summary(part)
        else:
            logger.log_hyperparams(dict(choices))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; what people and models wrote is shown, never interpreted."""
    lines: list[Any] = [columns, ["---"] * len(columns), *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(text: str) -> str:
    """Text as it is, a line break as one."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "<br>".join(map(as_markdown, lines))


def _card(columns: Sequence[str], row: Sequence[str]) -> str:
    return "\n\n".join(f"{column}:\n{text}" for column, text in zip(columns, row, strict=True))
