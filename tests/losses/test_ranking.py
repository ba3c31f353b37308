"""Bradley-Terry on rewards: goldens, and rewards that were planted and must be found again."""

import math

import pytest
import torch
from preference_goldens import close, equal, subject, tensors, variants
from torch import Tensor

from lit_sft.losses.ranking import pair_weights, ranking_losses


@pytest.mark.parametrize("variant", variants("reward"))
def test_golden(variant: str) -> None:
    given, expected = tensors("reward"), subject("reward")["variants"][variant]
    config = expected["config"]
    rewards = given["rewards"].clone().requires_grad_()
    pairs = torch.arange(len(rewards)).view(2, -1).T
    margin = given["margin"] if config["uses_margin"] else None
    found = ranking_losses(rewards.squeeze(1), pairs, margin, config["center_rewards_coefficient"] or 0.0)
    loss = found.losses.mean()
    close(loss, expected["loss"])
    close(found.is_right.float().mean(), expected["metrics"]["accuracy"])
    close(found.margins.mean(), expected["metrics"]["margin"])
    loss.backward()
    equal(rewards.grad, given[f"{variant}/grad_rewards"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("spread", [0.0, 1.0, 100.0, 1e4])
@pytest.mark.parametrize(("pairs", "margins", "centering"), [
    ([[0, 1]], None, 0.0),
    ([[2, 0], [0, 1], [2, 1]], None, 0.01),
    ([[0, 1], [3, 2]], [2.5, -0.5], 0.3),
])  # fmt: skip
def test_loss_and_gradients_are_those_of_the_formula(
    pairs: list[list[int]], margins: list[float] | None, centering: float, spread: float, dtype: torch.dtype
) -> None:
    """One pair or a ranking, ties, and rewards so far apart that an exponential of them would be infinite."""
    rewards = (spread * torch.randn(4, dtype=dtype)).requires_grad_()
    values, slopes = rewards.tolist(), [0.0] * 4
    found = ranking_losses(
        rewards, torch.tensor(pairs), None if margins is None else torch.tensor(margins, dtype=dtype), centering
    )
    for number, (better, worse) in enumerate(pairs):
        above = values[better] - values[worse] - (margins[number] if margins else 0)
        both = values[better] + values[worse]
        loss = max(-above, 0) + math.log1p(math.exp(-abs(above))) + centering * both**2
        assert found.losses[number].item() == pytest.approx(loss, rel=1e-5, abs=1e-6)
        assert found.is_right[number].item() == (values[better] > values[worse])
        share = math.exp(-max(above, 0)) / (1 + math.exp(-abs(above)))  # sigmoid(-above)
        slopes[better] += 2 * centering * both - share
        slopes[worse] += 2 * centering * both + share
    found.losses.sum().backward()
    assert rewards.grad is not None
    assert rewards.grad.tolist() == pytest.approx(slopes, rel=1e-5, abs=1e-6)


def test_a_tie_is_not_right_and_costs_ln_2() -> None:
    found = ranking_losses(torch.tensor([1.5, 1.5]), torch.tensor([[0, 1]]))
    assert found.is_right.tolist() == [False]
    assert found.losses.item() == pytest.approx(math.log(2))


def test_a_margin_asks_for_more_and_is_not_part_of_what_is_measured() -> None:
    rewards, pairs = torch.tensor([1.0, 0.0]), torch.tensor([[0, 1]])
    plain, asked = ranking_losses(rewards, pairs), ranking_losses(rewards, pairs, torch.tensor([2.0]))
    assert asked.losses > plain.losses
    assert asked.is_right.tolist() == [True]
    assert asked.margins.tolist() == [1.0]


def test_swapping_the_sides_negates_the_margin() -> None:
    rewards, pairs = torch.randn(6), torch.tensor([[0, 1], [2, 5], [3, 4]])
    assert torch.equal(ranking_losses(rewards, pairs).margins, -ranking_losses(rewards, pairs.flip(1)).margins)


def test_every_prompt_counts_once_however_many_answers_it_has() -> None:
    prompts = torch.tensor([7] + [1] * 6 + [4] * 3)
    weights = pair_weights(prompts)
    torch.testing.assert_close(weights, torch.tensor([1.0] + [1 / 6] * 6 + [1 / 3] * 3))
    assert pair_weights(prompts[:0]).shape == (0,)


def planted(centering: float, is_soft: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Features [16, 3], the weights that made the rewards, and those found from all pairs by Newton's method."""
    features = torch.randn(16, 3, dtype=torch.float64)
    features = features - features.mean(0) + torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64)
    truth = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    rewards = features @ truth
    pairs = torch.cartesian_prod(torch.arange(16), torch.arange(16))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    difference = rewards[pairs[:, 0]] - rewards[pairs[:, 1]]
    share = difference.sigmoid() if is_soft else (difference > 0).double()

    def loss(weights: Tensor) -> Tensor:
        scores = features @ weights[:3] + weights[3]
        return (share * ranking_losses(scores, pairs, centering=centering).losses).sum() / share.sum()

    weights = torch.zeros(4, dtype=torch.float64)
    for _ in range(12):
        gradient = torch.autograd.functional.jacobian(loss, weights)
        curvature = torch.autograd.functional.hessian(loss, weights)
        # Of several solutions the shortest: without centering the constant is free.
        weights = weights - torch.linalg.pinv(curvature, hermitian=True, atol=1e-12) @ gradient
    return features, truth, weights


def test_a_planted_reward_is_found_up_to_a_constant() -> None:
    _, truth, found = planted(0.0, is_soft=True)
    torch.testing.assert_close(found[:3], truth, rtol=0, atol=1e-6)


def test_centering_sets_the_mean_and_bends_the_reward() -> None:
    features, truth, found = planted(0.01, is_soft=True)
    scores = features @ found[:3] + found[3]
    assert abs(scores.mean()) < 1e-9
    assert (found[:3] - truth).abs().max() > 0.14, "centering is not free"


def test_labels_that_are_never_wrong_give_the_direction_and_no_length() -> None:
    lengths = []
    features = torch.randn(200, 3, dtype=torch.float64)
    truth = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    pairs = torch.combinations(torch.arange(200))
    rewards = features @ truth
    pairs = torch.where((rewards[pairs[:, 0]] > rewards[pairs[:, 1]])[:, None], pairs, pairs.flip(1))
    weights = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=15, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = ranking_losses(features @ weights, pairs).losses.mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
        lengths.append(weights.detach().norm().item())
    assert torch.cosine_similarity(weights.detach(), truth, dim=0) > 0.999
    assert 4 * lengths[0] < lengths[-1]
    assert lengths[-1] > 2 * truth.norm()
    assert ranking_losses(features @ weights.detach(), pairs).is_right.all()
