"""What was measured before a run is that of its first start."""

from types import SimpleNamespace
from typing import Any

import torch

from lit_sft.callbacks.pair_samples import PairSamples
from lit_sft.callbacks.samples import Samples
from lit_sft.callbacks.summary import Summary


def measured_before(loss: float) -> Any:
    """A trainer in the validation before its first step."""
    return SimpleNamespace(
        sanity_checking=True,
        num_sanity_val_steps=float("inf"),
        global_step=0,
        callback_metrics={"val/loss": torch.tensor(loss)},
        loggers=[],
    )


def test_a_run_that_is_taken_up_keeps_what_was_measured_before_its_first_start() -> None:
    samples = Samples(count=0)
    first, resumed = (Summary(samples, PairSamples(samples)) for _ in range(2))
    first.on_validation_end(measured_before(7.5), None)  # type: ignore[arg-type]
    resumed.load_state_dict(first.state_dict())
    resumed.on_validation_end(measured_before(2.5), None)  # type: ignore[arg-type]
    assert resumed.state_dict()["_before"] == {"val/loss": 7.5}
