"""Training in 16-mixed: what the loss scaler multiplies is divided out before the mean, the norm and the clipping."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_sft import open_checkpoint
from lit_sft.__main__ import main

pytestmark = pytest.mark.slow  # as a whole

Train = Callable[..., Path]
CLIP = 0.5
FULL = {"class_path": "Full"}
LORA = {"class_path": "LoRA", "init_args": {"rank": 4}}


@pytest.fixture
def train(write_config: Callable[..., str], tmp_path: Path) -> Train:
    """A run of four clipped steps of two micro-batches, and nothing else."""

    def fit(name: str, tuning: dict[str, Any], **trainer: Any) -> Path:
        settings = {"max_steps": 4, "accumulate_grad_batches": 2, "gradient_clip_val": CLIP, "limit_val_batches": 0}
        options: dict[str, Any] = {"model": {"tuning": tuning}, "samples": {"count": 0}, "name": name}
        assert main(["fit", "--config", write_config(trainer={**settings, **trainer}, **options)]) == 0
        (run,) = (tmp_path / "runs").glob(f"{name}-*")
        return run

    return fit


def scaled(scale: float = 2.0**16) -> list[dict[str, Any]]:
    return [{"class_path": "fakes.ScaledHalf", "init_args": {"scale": scale}}]


def curve(run: Path, name: str) -> list[float]:
    events = EventAccumulator(str(run))
    events.Reload()
    return [event.value for event in events.Scalars(f"train/{name}")]


@pytest.mark.parametrize("tuning", [FULL, LORA], ids=["full", "lora"])
def test_losses_and_clipped_gradients_are_those_of_float32(train: Train, tuning: dict[str, Any]) -> None:
    half, exact = train("half", tuning, plugins=scaled()), train("exact", tuning)
    assert curve(half, "loss") == pytest.approx(curve(exact, "loss"), rel=5e-3)
    # Of the first step, before the weights part; later ones differ by the rounding of those before.
    assert curve(half, "gradient_norm")[0] == pytest.approx(curve(exact, "gradient_norm")[0], rel=2e-3)
    assert curve(half, "gradient_norm") == pytest.approx(curve(exact, "gradient_norm"), rel=5e-2)
    assert min(curve(exact, "gradient_norm")) > CLIP  # every step was clipped
    assert curve(half, "loss")[-1] < curve(half, "loss")[0]


def test_the_scale_changes_nothing(train: Train) -> None:
    one, other = (train(name, FULL, plugins=scaled(scale)) for name, scale in (("one", 2.0**8), ("other", 2.0**12)))
    assert curve(one, "loss") == pytest.approx(curve(other, "loss"), rel=1e-3)


def test_a_step_that_overflows_is_skipped_and_is_not_an_error(train: Train, tiny_folder: Path) -> None:
    run = train("large", FULL, plugins=scaled(2.0**120))
    # Four halvings of the scale are too few: all gradients were infinite, and no weight has moved.
    stored = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert stored["ScaledHalf"]["scale"] == 2.0**116
    base = open_checkpoint(tiny_folder).load_model().state_dict()
    assert all(torch.equal(stored["state_dict"][f"model.{name}"], base[name]) for name in base)


def test_training_goes_on_when_the_scale_has_fallen(train: Train) -> None:
    run = train("large", FULL, plugins=scaled(2.0**30), max_steps=12, max_epochs=6)
    scale = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["ScaledHalf"]["scale"]
    assert 2.0**18 < scale < 2.0**30
    losses = curve(run, "loss")
    assert losses[-1] < 0.9 * losses[0]
