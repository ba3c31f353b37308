"""NEFTune: noise of the right size on the embeddings of training, and nowhere else."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_sft.checkpoint.opening import families
from lit_sft.conversation import Example, Prompt
from lit_sft.data.collate import collate
from lit_sft.errors import ConfigError
from lit_sft.stages._neftune import noisy_embeddings
from lit_sft.stages.sft import SFT
from lit_sft.tuning.full import Full
from lit_sft.tuning.lora import LoRA

pytestmark = pytest.mark.slow  # as a whole

LENGTHS = [[5, 20], [12]]
BATCH = collate([[Example(ids := list(range(30, 30 + n)), ids) for n in row] for row in LENGTHS], 0)


def stage_of(folder: Path, family: str = "auto", **options: Any) -> SFT:
    stage = SFT(checkpoint=str(folder), family=family, **{"tuning": Full(), **options})
    stage.configure_model()
    return stage


def embedded(stage: SFT) -> torch.Tensor:
    """What the embedding hands on, [B, T, d]."""
    result: torch.Tensor = stage.causal_lm.get_input_embeddings()(BATCH.input_ids)
    return result.detach()


@pytest.mark.parametrize("family", sorted(families()))
def test_noise_is_as_large_as_the_length_of_the_example_says(tiny: Callable[[str], Path], family: str) -> None:
    stage = stage_of(tiny(family), family)
    plain = embedded(stage)
    with noisy_embeddings(stage.causal_lm, 5.0, BATCH.segment_ids):
        noise = embedded(stage) - plain
    assert torch.equal(embedded(stage), plain)
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for length in lengths:
            magnitude = 5 / math.sqrt(length * plain.shape[-1])
            part = noise[row, start : start + length]
            assert 0.97 * magnitude < part.abs().max() <= magnitude * 1.001
            assert part.std() == pytest.approx(magnitude / math.sqrt(3), rel=0.1)
            start += length
        assert not noise[row, start:].any()


@pytest.mark.parametrize("family", sorted(families()))
def test_training_is_noisy_and_measuring_and_answering_are_not(tiny: Callable[[str], Path], family: str) -> None:
    quiet, noisy = (stage_of(tiny(family), family, neftune_alpha=alpha) for alpha in (None, 5.0))
    assert not torch.equal(noisy.training_step(BATCH, 0), quiet.training_step(BATCH, 0))
    assert torch.equal(noisy(BATCH).loss, quiet(BATCH).loss)
    prompt = Prompt(list(range(30, 40)), "", None, "")
    assert noisy.answer([prompt]) == quiet.answer([prompt])


def test_noise_follows_the_seed_and_survives_gradient_checkpointing_beside_adapters(
    tiny: Callable[[str], Path],
) -> None:
    gradients = []
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        changed: dict[str, Any] = {"neftune_alpha": 5.0, "gradient_checkpointing": is_checkpointed}
        stage = stage_of(tiny("baichuan-7b"), tuning=LoRA(rank=4), **changed)
        torch.manual_seed(1)
        stage.training_step(BATCH, 0).backward()
        gradients.append({name: p.grad for name, p in stage.named_parameters() if p.grad is not None})
        torch.manual_seed(2)
        assert not torch.equal(stage.training_step(BATCH, 0), stage.training_step(BATCH, 0))
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_an_alpha_that_is_not_a_magnitude_is_refused(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="neftune_alpha is -1; it must be above 0"):
        SFT(checkpoint=str(tiny("baichuan-7b")), tuning=Full(), neftune_alpha=-1)
