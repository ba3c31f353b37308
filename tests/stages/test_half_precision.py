"""Training in 16-mixed: what the loss scaler multiplies is divided out before the mean, the norm and the clipping."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_sft.__main__ import main

pytestmark = pytest.mark.slow  # as a whole

Train = Callable[..., Path]
FULL = {"class_path": "Full"}
LORA = {"class_path": "LoRA", "init_args": {"rank": 4}}


@pytest.fixture
def train(write_config: Callable[..., str], tmp_path: Path) -> Train:
    """A run of eight clipped steps of two micro-batches."""

    def fit(name: str, tuning: dict[str, Any], **trainer: Any) -> Path:
        settings = {"max_steps": 8, "accumulate_grad_batches": 2, "gradient_clip_val": 0.5, **trainer}
        assert main(["fit", "--config", write_config(model={"tuning": tuning}, trainer=settings, name=name)]) == 0
        (run,) = (tmp_path / "runs").glob(f"{name}-*")
        return run

    return fit


def scaled(scale: float = 2.0**16) -> list[dict[str, Any]]:
    return [{"class_path": "fakes.ScaledHalf", "init_args": {"scale": scale}}]


def curve(run: Path, name: str) -> list[float]:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [event.value for event in events.Scalars(f"train/{name}")]


def weights(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return found


@pytest.mark.parametrize("tuning", [FULL, LORA], ids=["full", "lora"])
def test_losses_and_clipped_gradients_are_those_of_float32(train: Train, tuning: dict[str, Any]) -> None:
    half, exact = train("half", tuning, plugins=scaled()), train("exact", tuning)
    assert curve(half, "loss") == pytest.approx(curve(exact, "loss"), rel=5e-3)
    assert curve(half, "gradient_norm") == pytest.approx(curve(exact, "gradient_norm"), rel=2e-2)
    assert min(curve(exact, "gradient_norm")) > 0.5  # every step was clipped
    assert curve(half, "loss")[-1] < curve(half, "loss")[0]


def test_the_scale_changes_nothing(train: Train) -> None:
    one, other = (train(name, FULL, plugins=scaled(scale)) for name, scale in (("one", 2.0**8), ("other", 2.0**12)))
    assert curve(one, "loss") == pytest.approx(curve(other, "loss"), rel=1e-3)


def test_a_step_that_overflows_is_skipped_and_the_scale_falls_until_none_does(train: Train) -> None:
    too_large, never = train("large", FULL, plugins=scaled(2.0**40)), train("never", FULL, plugins=scaled(2.0**120))
    kept, started = weights(too_large), weights(never)
    # Eight halvings of 2^120 are still too large: no step was made, and none was an error.
    assert len(set(curve(never, "loss"))) > 1  # of other records each
    scale = torch.load(never / "checkpoints" / "last.ckpt", weights_only=True)["ScaledHalf"]["scale"]
    assert scale == 2.0**112
    assert kept.keys() == started.keys()
