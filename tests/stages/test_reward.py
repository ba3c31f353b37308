"""A reward model: which token is scored, what it learns, what is measured, what is written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rankings import ranked, written
from safetensors.torch import load_file
from streams import fit

from lit_sft.checkpoint.opening import open_checkpoint
from lit_sft.conversation import PairBatch
from lit_sft.data.preference import PreferenceData
from lit_sft.errors import ConfigError
from lit_sft.stages.reward import Reward
from lit_sft.tuning.full import Full
from lit_sft.tuning.lora import LoRA
from lit_sft.tuning.qlora import QLoRA

Tiny = Callable[[str], Path]

POLITE = [ranked(f"question {i}", f"please {i % 9} thank you", f"go away {i % 7}" + "!" * (i % 5)) for i in range(48)]


def data_of(tmp_path: Path, checkpoint: Path, records: list[dict[str, Any]] = POLITE, **options: Any) -> PreferenceData:
    text = open_checkpoint(str(checkpoint))
    options = {"max_length": 64, "micro_batch_size": 4, "validation_fraction": 0.25, **options}
    return PreferenceData(text, [written(tmp_path / "pairs.jsonl", records)], **options)


def first_batch(data: PreferenceData) -> PairBatch:
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, PairBatch)
    return batch


def test_the_score_is_that_of_the_last_token_alone_or_packed(checkpoint: Any, tmp_path: Path) -> None:
    stage = Reward(str(checkpoint.path), LoRA(rank=2))
    stage.configure_model()
    with torch.no_grad():
        packed = first_batch(data_of(tmp_path, checkpoint.path, packing=True))
        scores = stage.scores(packed)
        segments = [
            packed.input_ids[row][packed.segment_ids[row] == number]
            for row in range(len(packed.input_ids))
            for number in range(1, int(packed.segment_ids[row].max()) + 1)
        ]
        assert len(segments) == len(scores) > 2
        assert stage.head is not None
        for ids, score in zip(segments, scores, strict=True):
            hidden = stage.causal_lm.get_decoder()(input_ids=ids[None], use_cache=False).last_hidden_state
            torch.testing.assert_close(stage.head(hidden[0, -1:])[0], score, rtol=1e-4, atol=1e-5)
