"""What TRL's functions gave for small random numbers: tests/golden/preference/README.md says how they were made."""

import json
from functools import cache
from typing import Any

import torch
from goldens import GOLDEN
from safetensors.torch import load_file
from torch import Tensor, nn

from lit_sft.losses.logprobs import TokenLogProbs, token_log_probs
from lit_sft.losses.segments import Segments

TOLERANCE = 2e-5
"""Relative to max(1, |value|) for losses and metrics, absolute for the rest."""


@cache
def subject(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / "preference" / f"{name}.json").read_text(encoding="utf-8"))
    return found


@cache
def tensors(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / "preference" / f"{name}.safetensors")


def variants(name: str, *without: str) -> list[str]:
    return [variant for variant in subject(name)["variants"] if variant not in without]


def close(actual: Tensor | float, expected: Tensor | float) -> None:
    """A loss or a metric."""
    actual, expected = torch.as_tensor(actual).detach().double(), torch.as_tensor(expected).double()
    assert (actual - expected).abs() <= TOLERANCE * max(1, float(expected.abs())), (actual, expected)


def equal(actual: Tensor | None, expected: Tensor) -> None:
    """A gradient, an advantage, a log-probability."""
    assert actual is not None
    torch.testing.assert_close(actual.float(), expected.float(), rtol=0, atol=TOLERANCE)


def tokens(logits: Tensor, ids: Tensor, mask: Tensor, **options: Any) -> tuple[TokenLogProbs, Segments]:
    """Log-probabilities of the tokens [R, T] under the mask, as the stages compute them, logits being hidden states."""
    is_chosen = mask[:, 1:].bool()
    found = token_log_probs(logits[:, :-1][is_chosen], ids[:, 1:][is_chosen], nn.Identity(), chunk_size=7, **options)
    rows = is_chosen.nonzero()[:, 0]
    return found, Segments.of(rows, len(ids), ids.shape[1])
