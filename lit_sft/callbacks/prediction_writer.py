"""Predictions as JSON Lines, in a file that survives an interruption."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from lit_sft.callbacks._answered import AnsweredPrompts, refuse_foreign
from lit_sft.conversation import Prompt
from lit_sft.data._asking import AskingData
from lit_sft.errors import ConfigError
from lit_sft.files import states_of
from lit_sft.generation.generate import TOKEN_BUDGET
from lit_sft.runs.folder import PREDICTIONS
from lit_sft.stages._predicting import Predicting

log = logging.getLogger(__name__)


class PredictionWriter(Callback):
    """Writes the rows of each prompt, in order; what an interrupted `predict` answered is not answered again.

    Prompts of similar length are answered together, the longest first. The processes of several devices take turns in
    the batches; the first writes the answers of all.

    Args:
        path: File to write; if not given `predictions.jsonl` in the run folder, with --base `predictions-base.jsonl`,
            and without a run `predictions-MODEL.jsonl` in the folder of all runs.
        token_budget: Tokens of prompts and answers, of all beams, that a device holds in memory at once; a prompt that
            needs more is answered alone.
    """

    def __init__(self, path: str | None = None, token_budget: int = TOKEN_BUDGET) -> None:
        if token_budget < 1:
            raise ConfigError(f"predictions.token_budget is {token_budget}; it must be at least 1")
        self.path = Path(path) if path else None
        self.default_name = PREDICTIONS
        self.token_budget = token_budget
        self._answered: AnsweredPrompts | None = None
        self._num_prompts = 0
        self._steps: list[list[int]] = []
        """Numbers of the prompts that all processes answer in each step."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settle where to write and what to answer, before any weight is loaded.

        Raises:
            ConfigError: If the file cannot be written, or was begun with other prompts, model or strategies.
        """
        if stage != "predict":
            return
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it, but does not declare it
        if not isinstance(pl_module, Predicting) or not isinstance(data, AskingData):
            raise ConfigError("predict needs a model that answers or scores, such as SFT, and data that asks: SFTData")
        pl_module.check_prompts(data.predict_prompts)
        found: set[int] | ConfigError = set()
        if trainer.is_global_zero:
            try:
                self._answered = AnsweredPrompts(
                    self._partial(trainer), _settings(trainer, pl_module, data.predict_prompts)
                )
                found = self._answered.numbers
            except ConfigError as error:
                found = error
        # Not all machines need have the file.
        found = trainer.strategy.broadcast(found)
        if isinstance(found, ConfigError):
            raise found
        self._num_prompts = len(data.predict_prompts)
        group = partial(pl_module.group_prompts, token_budget=self.token_budget)
        self._steps = data.plan_batches(group, answered=found)
        if found:
            log.info("going on: %d of %d prompts are answered", len(found), self._num_prompts)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: list[dict[str, Any]],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append the rows of all processes; what is written survives an interruption."""
        if self._answered:
            numbers = self._steps[batch_idx]
            each = len(outputs) // len(numbers)
            self._answered.add({n: outputs[i * each : (i + 1) * each] for i, n in enumerate(numbers)})

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say how to go on."""
        if self._answered:
            if self._answered.numbers:
                self._tell_unfinished(self._answered)
            self._answered.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the file its name if all is answered; `on_predict_end` does not come if nothing was left to answer."""
        if stage != "predict" or not self._answered:
            return
        assert self.path is not None
        if len(self._answered.numbers) == self._num_prompts:
            rows = self._answered.finish(self.path)
            log.info("%d answers in %s%s", len(rows), self.path, _scored(rows))
        else:  # limit_predict_batches
            self._tell_unfinished(self._answered)
            self._answered.close()

    def _partial(self, trainer: Trainer) -> Path:
        self.path = self.path or Path(trainer.default_root_dir) / self.default_name
        if self.path.is_dir():
            raise ConfigError(f"predictions.path {self.path} is a folder; give a file")
        refuse_foreign(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"predictions.path {self.path} cannot be written: {error.strerror}") from None
        return self.path.with_name(self.path.name + ".partial")

    def _tell_unfinished(self, answered: AnsweredPrompts) -> None:
        log.info(
            "%d of %d prompts are answered, in %s; the same command goes on from there",
            len(answered.numbers), self._num_prompts, answered.path,
        )  # fmt: skip


def _scored(rows: Sequence[dict[str, Any]]) -> str:
    """What is to be said of scores, if rows have any."""
    scores = [row["score"] for row in rows if row.get("score") is not None]
    if not any("score" in row for row in rows):
        return ""
    num_missing = len(rows) - len(scores)
    missing = (
        f"; {num_missing} have none: not finite, too long, or not to be written in the prompt format"
        if num_missing
        else ""
    )
    return f", mean score {sum(scores) / max(1, len(scores)):.4g}{missing}"


def _settings(trainer: Trainer, stage: Predicting, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """All that answers depend on."""
    asked = [(p.input_ids, p.text, p.reference, p.source, p.category, p.is_truncated) for p in prompts]
    checkpoint, tuning = stage.checkpoint, stage.tuning
    trained = [Path(trainer.ckpt_path)] if trainer.ckpt_path else []
    trained += sorted(Path(tuning.adapter).iterdir()) if tuning.adapter else []
    return {
        "prompts": hashlib.sha256(repr(asked).encode()).hexdigest(),
        "model": states_of([checkpoint.path / "config.json", *checkpoint.tokenizer_files, *checkpoint.weight_files]),
        "tuned weights": states_of(trained),
        "tuning": {"class": type(tuning).__name__, **{name: str(value) for name, value in vars(tuning).items()}},
        "precision": str(trainer.precision),
        **stage.row_settings(),
    }
