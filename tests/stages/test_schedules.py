"""Learning rate by share of the run."""

from itertools import pairwise

import pytest

from lit_sft.errors import ConfigError
from lit_sft.stages.schedules import Constant, Cosine, Linear, Schedule


@pytest.mark.parametrize("schedule", [Constant(0.1), Linear(0.1), Cosine(0.1)])
def test_the_rate_rises_to_its_full_height_and_never_above(schedule: Schedule) -> None:
    factors = [schedule.factor((step - 1) / 100, step / 100) for step in range(1, 101)]
    assert factors[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert max(factors) == 1.0
    assert all(later <= earlier for earlier, later in pairwise(factors[9:]))


@pytest.mark.parametrize(("schedule", "middle", "end"), [(Constant, 1, 1), (Linear, 0.5, 0), (Cosine, 0.5, 0)])
def test_shape(schedule: type[Schedule], middle: float, end: float) -> None:
    assert schedule(0.0).factor(0.5, 0.51) == pytest.approx(middle)
    assert schedule(0.2).factor(0.6, 0.61) == pytest.approx(middle)
    assert schedule(0.2).factor(1 - 1e-9, 1.0) == pytest.approx(end, abs=1e-6)


@pytest.mark.parametrize("schedule", [Constant, Linear, Cosine])
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.03, 0.5])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 50])
def test_every_step_learns(schedule: type[Schedule], warmup_fraction: float, num_steps: int) -> None:
    made = schedule(warmup_fraction)
    assert all(made.factor(step / num_steps, (step + 1) / num_steps) > 0 for step in range(num_steps))


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="warmup_fraction is 1"):
        Cosine(warmup_fraction=1.0)
