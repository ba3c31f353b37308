"""Advantages of tokens, whitening and the loss of values: goldens, and a trajectory worked by hand."""

import math
from typing import Any

import pytest
import torch
from preference_goldens import close, equal, subject, tensors, variants

from lit_sft.losses.gae import explained_variance, generalized_advantages, token_rewards, value_losses
from lit_sft.losses.kl import adapted_coefficient, k1, k3
from lit_sft.losses.moments import moments, whitened


def of_kind(kind: str) -> list[str]:
    return [name for name in variants("ppo") if name.startswith(kind)]


@pytest.mark.parametrize("variant", of_kind("rewards"))
def test_golden_rewards(variant: str) -> None:
    given, config = tensors("ppo"), subject("ppo")["variants"][variant]["config"]
    estimate = {"k1": k1, "k3": k3}[config["kl_estimator"]]
    kl = estimate(given["old_logps"], given["reference_logps"])
    equal(token_rewards(given["scores"], kl, given["mask"].bool(), config["kl_coef"]), given[variant])


@pytest.mark.parametrize("variant", of_kind("gae"))
def test_golden_advantages(variant: str) -> None:
    given, config = tensors("ppo"), subject("ppo")["variants"][variant]["config"]
    mask = given["mask"].bool()
    found = generalized_advantages(
        given[config["rewards"]], given["old_values"], mask, gamma=config["gamma"], lam=config["lam"]
    )
    equal(found.advantages, given[f"{variant}/advantages"])
    equal(found.returns * mask, given[f"{variant}/returns"] * mask)
    equal(whitened(found.advantages, mask), given[f"{variant}/whitened_advantages"] * mask)


@pytest.mark.parametrize("variant", of_kind("value"))
def test_golden_values(variant: str) -> None:
    given, expected = tensors("ppo"), subject("ppo")["variants"][variant]
    config, mask = expected["config"], given["mask"].bool()
    values = given["new_values"].clone().requires_grad_()
    losses = value_losses(values, given["old_values"], given[config["returns"]], mask, config["clip"])
    mean = losses.sum() / mask.sum()
    close(mean, expected["loss"])
    mean.backward()
    equal(values.grad, given[f"{variant}/grad_new_values"])


def test_three_steps_by_hand() -> None:
    by_hand: dict[str, Any] = subject("ppo")["by_hand"]
    rewards, values = (torch.tensor([[*by_hand[name], math.nan]]) for name in ("rewards", "values"))
    mask = torch.tensor([[True, True, True, False]])
    found = generalized_advantages(rewards, values, mask, gamma=by_hand["gamma"], lam=by_hand["lam"])
    assert found.advantages.tolist() == [[*by_hand["advantages"], 0]]
    assert found.returns.tolist() == [[*by_hand["returns"], 0]]


def test_whitening_of_two_devices_is_that_of_one() -> None:
    values, mask = torch.randn(4, 5), torch.rand(4, 5) > 0.3
    sums = moments(values[:2], mask[:2]) + moments(values[2:], mask[2:])
    parts = torch.cat([whitened(values[:2], mask[:2], sums), whitened(values[2:], mask[2:], sums)])
    torch.testing.assert_close(parts, whitened(values, mask))
    assert whitened(values, mask)[mask].var() == pytest.approx(1, abs=1e-5)


def test_values_explain_all_nothing_or_less_than_their_mean() -> None:
    returns, mask = torch.randn(3, 4), torch.rand(3, 4) > 0.2
    assert explained_variance(returns.where(mask, math.nan), returns, mask) == 1
    assert explained_variance(torch.zeros(3, 4), returns, mask) == pytest.approx(0, abs=1e-6)
    assert explained_variance(-returns, returns, mask) < 0


def test_the_coefficient_steers_towards_the_target() -> None:
    """Ziegler et al. 2019, section 2.2: the error is cut at a fifth."""
    options = {"target": 6.0, "num_answers": 256, "horizon": 10_000}
    assert adapted_coefficient(0.2, 6.0, **options) == 0.2  # type: ignore[arg-type]
    assert adapted_coefficient(0.2, 6.6, **options) == pytest.approx(0.2 * (1 + 0.1 * 0.0256))  # type: ignore[arg-type]
    assert adapted_coefficient(0.2, 60, **options) == pytest.approx(0.2 * (1 + 0.2 * 0.0256))  # type: ignore[arg-type]
    assert adapted_coefficient(0.2, 0, **options) == pytest.approx(0.2 * (1 - 0.2 * 0.0256))  # type: ignore[arg-type]


def test_estimates_are_right_on_average_and_one_is_never_negative() -> None:
    reference, policy = torch.randn(2, 50, dtype=torch.float64).log_softmax(1)
    exact = (policy.exp() * (policy - reference)).sum()
    for estimate in (k1, k3):
        torch.testing.assert_close((policy.exp() * estimate(policy, reference)).sum(), exact)
    assert (k3(policy, reference) >= 0).all()
    assert (k1(policy, reference) < 0).any()
