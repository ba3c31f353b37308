"""Sample pairs during validation, as text beside the curves: what the stage thinks of both answers."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule, Trainer

from lit_sft.callbacks._before_after import BeforeAfter
from lit_sft.callbacks._loggers import log_table
from lit_sft.callbacks.samples import Samples
from lit_sft.conversation import Judged, Preference
from lit_sft.data.batch import PairBatch
from lit_sft.data.preference import PreferenceData
from lit_sft.stages._judging import Judging


class PairSamples(BeforeAfter):
    """Judges the first held-out pairs, as many as there are samples, when samples are answered.

    Args:
        samples: Says how many.
    """

    def __init__(self, samples: Samples) -> None:
        super().__init__()
        self.samples = samples

    def see(self, trainer: Trainer, stage: LightningModule) -> bool:
        """Prompt, the best and the worst answer, what their number is called, and that of each before and after."""
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it, but does not declare it
        if not isinstance(stage, Judging) or not isinstance(data, PreferenceData) or not self.samples.count:
            return False
        before = {(row["prompt"], row["chosen"], row["rejected"]): row["before"] for row in self.rows}
        rows = []
        for record, batch in data.sample_pairs(self.samples.count):
            moved: PairBatch = batch.to(stage.device)
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                numbers = stage.judge(moved).tolist()
            chosen, rejected = _texts(record)
            now = [None if chosen is None else numbers[0], None if rejected is None else numbers[-1]]
            prompt = "\n".join(message.content for message in record.prompt)
            rows.append(
                {
                    "prompt": prompt,
                    "chosen": chosen,
                    "rejected": rejected,
                    "judgment": stage.judgment,
                    "before": before.get((prompt, chosen, rejected), now),
                    "after": now,
                }
            )
        self.rows = rows
        if rows:
            log_table(trainer, "pairs", *_table(rows, stage.judgment))
        return True


def _texts(record: Preference | Judged) -> tuple[str | None, str | None]:
    """The best and the worst answer; a judged one stands alone."""
    if isinstance(record, Judged):
        return (record.answer.content, None) if record.is_good else (None, record.answer.content)
    return record.answers[0].content, record.answers[-1].content


def _table(rows: list[dict[str, Any]], judgment: str) -> tuple[list[str], list[list[str]]]:
    """Columns and rows; a number stands below its answer, for TensorBoard breaks those of narrow columns."""
    lines = []
    for row in rows:
        texts, befores, nows = (row["chosen"], row["rejected"]), row["before"], row["after"]
        answers = [
            "" if text is None else f"{text}\n{judgment} {before:.3g} → {now:.3g}"
            for text, before, now in zip(texts, befores, nows, strict=True)
        ]
        lines.append([row["prompt"], *answers])
    return ["prompt", "chosen", "rejected"], lines
