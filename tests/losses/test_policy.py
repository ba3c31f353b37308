"""Losses of policy gradients: goldens, and problems whose gradient or optimum is known exactly."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from preference_goldens import close, equal, subject, tensors, variants
from torch import Tensor, nn

from lit_sft.losses.advantages import group_advantages, leave_one_out_advantages, penalized
from lit_sft.losses.gae import generalized_advantages
from lit_sft.losses.logprobs import token_log_probs
from lit_sft.losses.policy import POLICY_LOSSES, PolicyLoss, PolicyTotals, policy_totals
from lit_sft.losses.segments import Segments


def loss_of(config: dict[str, Any]) -> PolicyLoss:
    """TRL's options in our words."""
    if config["method"] == "rloo":
        return replace(POLICY_LOSSES["rloo"], clip_low=config["epsilon_low"], clip_high=config["epsilon_high"])
    is_cispo = config["loss_type"] == "cispo"
    mean: Any = {"grpo": "answers", "dr_grpo": "constant"}.get(config["loss_type"], "tokens")
    return PolicyLoss(
        ratio="mean" if config["importance_sampling_level"] == "sequence" else "token",
        mean=mean,
        clip_low=config["epsilon_low"],
        clip_high=config["epsilon_high"] - is_cispo,  # TRL gives the bound itself
        clips_weight=is_cispo,
        largest_ratio=config["delta"],
        kl_weight=config["beta"],
        corrects_kl=config["use_bias_correction_kl"],
        entropy_weight=config["entropy_coef"],
    )


def check_metrics(found: PolicyTotals, lengths: Tensor, expected: dict[str, float]) -> None:
    low, high, num = found.clipped_low, found.clipped_high, found.num_ratios
    metrics = {
        "clip_ratio/low_mean": low.sum() / num.sum(),
        "clip_ratio/high_mean": high.sum() / num.sum(),
        "clip_ratio/region_mean": (low + high).sum() / num.sum(),
        "clip_ratio/low_min": (low / num).min(),
        "clip_ratio/high_max": (high / num).max(),
        "cispo_clip_ratio": high.sum() / num.sum(),
        "kl": found.kl.sum() / lengths.sum(),
    }
    for name, value in expected.items():
        if name in metrics:
            close(metrics[name], value)


@pytest.mark.parametrize("variant", variants("policy"))
def test_golden(variant: str) -> None:
    given, expected = tensors("policy"), subject("policy")["variants"][variant]
    config, mask = expected["config"], given["completion_mask"].bool()
    temperature = config.get("temperature", 1.0)
    suffix = "" if temperature == 1 else f"_T{temperature}"
    loss = loss_of(config)
    logits = given["policy_logits"].clone().requires_grad_()
    found = token_log_probs(
        logits[mask], given["completion_ids"][mask], nn.Identity(), temperature=temperature, is_measured=True,
        differentiates_entropy=bool(loss.entropy_weight),
    )  # fmt: skip
    segments = Segments.of(mask.nonzero()[:, 0], *mask.shape)
    logps = segments.grid(found.logps)
    equal(torch.where(mask, given[f"policy_logps{suffix}"], 0.0), logps.detach())
    logps.retain_grad()
    totals = policy_totals(
        loss,
        logps,
        segments.mask,
        given["advantages"],
        old=given[f"old_logps{suffix}"] if config["off_policy"] else None,
        reference=given[f"reference_logps{suffix}"] if loss.kl_weight else None,
        entropy=segments.grid(found.entropy) if loss.entropy_weight else None,
        max_tokens=subject("policy")["max_completion_length"],
    )
    mean = totals.losses.sum() / totals.counts.sum() / config.get("accumulation", 1)
    close(mean, expected["loss"])
    check_metrics(totals, segments.lengths, expected["metrics"])
    close(found.entropy.mean(), expected["metrics"]["entropy"])
    mean.backward()
    equal(logits.grad, given[f"{variant}/grad_policy_logits"])
    if not loss.entropy_weight:
        equal(logps.grad, given[f"{variant}/grad_policy_logps"])


@pytest.mark.parametrize("variant", [name for name in variants("ppo") if name.startswith("policy")])
def test_golden_of_ppo(variant: str) -> None:
    given, expected = tensors("ppo"), subject("ppo")["variants"][variant]
    config, mask = expected["config"], given["mask"].bool()
    logps = given["new_logps"].clone().requires_grad_()
    loss = replace(POLICY_LOSSES["ppo"], clip_low=config["clip"], clip_high=config["clip"])
    totals = policy_totals(loss, logps, mask, given[config["advantages"]], old=given["old_logps"])
    mean = totals.losses.sum() / totals.counts.sum()
    close(mean, expected["loss"])
    close((totals.clipped_low + totals.clipped_high).sum() / mask.sum(), expected["metrics"]["clip_fraction"])
    close(totals.drift.sum() / mask.sum(), expected["metrics"]["approx_kl"])
    mean.backward()
    equal(logps.grad, given[f"{variant}/grad_new_logps"])


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_a_policy_that_wrote_the_answers_has_ratio_one_and_the_plain_policy_gradient(name: str) -> None:
    logps = torch.randn(4, 6, requires_grad=True)
    mask = torch.arange(6) < torch.tensor([6, 3, 1, 4])[:, None]
    advantages = torch.tensor([1.0, -2.0, 0.5, 0.0])
    found = policy_totals(POLICY_LOSSES[name], logps, mask, advantages, max_tokens=6)
    assert not found.clipped_low.any()
    assert not found.clipped_high.any()
    assert not found.drift.any()
    same = policy_totals(POLICY_LOSSES[name], logps, mask, advantages, old=logps.detach(), max_tokens=6)
    assert torch.equal(found.losses, same.losses)
    (gradient,) = torch.autograd.grad(found.losses.sum(), [logps])
    by_token = gradient / torch.where(mask, -advantages[:, None], 1.0)
    expected: dict[str, Any] = {"answers": 1 / mask.sum(1, keepdim=True), "tokens": 1.0, "constant": 1 / 6}
    weight = 1.0 if name == "rloo" else expected[POLICY_LOSSES[name].mean]
    torch.testing.assert_close(by_token[:3], (mask * weight)[:3])


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_sums_do_not_depend_on_the_cut_nor_on_what_stands_beyond_an_answer(name: str) -> None:
    mask = torch.arange(6) < torch.tensor([6, 3, 1, 4])[:, None]
    logps, old, reference, entropy = torch.randn(4, 4, 6).unbind()
    loss = replace(POLICY_LOSSES[name], kl_weight=0.1, entropy_weight=0.01)

    def totals(rows: slice, noise: float) -> PolicyTotals:
        grids = [torch.where(mask, grid, noise)[rows] for grid in (logps, old, reference, entropy)]
        given = dict(zip(("old", "reference", "entropy"), grids[1:], strict=True))
        return policy_totals(loss, grids[0], mask[rows], torch.tensor([1.0, -2, 0.5, 3])[rows], max_tokens=6, **given)

    whole = totals(slice(4), 0.0)
    cut = [totals(slice(1), math.nan), totals(slice(1, 4), math.inf)]
    for one, parts in zip(whole, zip(*cut, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(parts), one)


# All answers of up to three tokens of three kinds, of which the first ends an answer. The policy is a table.
END, KINDS, LONGEST = 0, 3, 3
ANSWERS = [
    answer
    for length in range(1, LONGEST + 1)
    for answer in product(range(KINDS), repeat=length)
    if END not in answer[:-1] and (answer[-1] == END or length == LONGEST)
]
PREFIXES = sorted({answer[:place] for answer in ANSWERS for place in range(len(answer))})
ROWS = torch.tensor([[PREFIXES.index(a[:t]) if t < len(a) else 0 for t in range(LONGEST)] for a in ANSWERS])
TOKENS = torch.tensor([[*a, *[0] * (LONGEST - len(a))] for a in ANSWERS])
MASK = torch.arange(LONGEST) < torch.tensor([len(a) for a in ANSWERS])[:, None]


def tree_logps(table: Tensor) -> Tensor:
    """Of each token of each answer [15, 3], under a table of logits for each prefix."""
    return torch.where(MASK, table.log_softmax(1)[ROWS, TOKENS], 0.0)


def tree() -> tuple[Tensor, Tensor, Tensor]:
    """Table of logits, probabilities of the answers, their rewards."""
    torch.manual_seed(1)
    table = torch.randn(len(PREFIXES), KINDS, dtype=torch.float64, requires_grad=True)
    rewards = torch.rand(len(ANSWERS), dtype=torch.float64)
    probabilities = tree_logps(table).sum(1).exp()
    assert len(ANSWERS) == 15
    assert abs(probabilities.sum() - 1) < 1e-12
    return table, probabilities, rewards


def exact_gradient() -> Tensor:
    table, probabilities, rewards = tree()
    return torch.autograd.grad((probabilities * rewards).sum(), [table])[0]


def expected_gradient(name: str, advantage: Any, size: int) -> Tensor:
    """Minus the gradient of the loss, over all tuples of answers, weighted by how probable they are."""
    table, probabilities, rewards = tree()
    tuples = torch.cartesian_prod(*[torch.arange(len(ANSWERS))] * size)
    weights = probabilities.detach()[tuples].prod(1)
    rows = tuples.flatten()
    logps = tree_logps(table)[rows]
    found = policy_totals(POLICY_LOSSES[name], logps, MASK[rows], advantage(rewards[rows], size), max_tokens=LONGEST)
    losses, counts = (column.view(-1, size).sum(1) for column in (found.losses, found.counts))
    return -torch.autograd.grad((weights * losses / counts).sum(), [table])[0]


@pytest.mark.parametrize("size", [2, 3])
def test_the_gradient_of_rloo_is_the_policy_gradient(size: int) -> None:
    for name, scale in (("rloo", 1.0), ("dr_grpo", float(LONGEST))):
        found = expected_gradient(name, leave_one_out_advantages, size)
        torch.testing.assert_close(found * scale, exact_gradient(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [2, 3])
def test_a_mean_that_holds_the_answer_itself_makes_the_gradient_shorter(size: int) -> None:
    found = expected_gradient("rloo", lambda rewards, group: group_advantages(rewards, group, "none"), size)
    torch.testing.assert_close(found, (1 - 1 / size) * exact_gradient(), rtol=0, atol=1e-12)


def test_standard_deviations_and_random_lengths_in_a_denominator_bend_the_gradient() -> None:
    def cosine(name: str, advantage: Any) -> float:
        found = expected_gradient(name, advantage, 2)
        return float(torch.cosine_similarity(found.flatten(), exact_gradient().flatten(), dim=0))

    assert cosine("dr_grpo", leave_one_out_advantages) == pytest.approx(1, abs=1e-12)
    assert 0.9 < cosine("dapo", leave_one_out_advantages) < 0.9999
    assert 0.9 < cosine("grpo", leave_one_out_advantages) < 0.9999
    assert 0.7 < cosine("dr_grpo", group_advantages) < 0.9999


def exact_values(table: Tensor, rewards: Tensor) -> Tensor:
    """Expected reward at each prefix, [P]."""
    logps = tree_logps(table)
    values = []
    for number, prefix in enumerate(PREFIXES):
        below = torch.tensor([answer[: len(prefix)] == prefix for answer in ANSWERS])
        after = torch.where(torch.arange(LONGEST) >= len(prefix), logps, 0.0).sum(1).exp()
        values.append((after * rewards)[below].sum())
        assert number == len(values) - 1
    return torch.stack(values)


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("is_exact", [True, False])
def test_advantages_of_tokens_give_the_policy_gradient_unless_values_are_wrong(lam: float, is_exact: bool) -> None:
    table, probabilities, rewards = tree()
    values = exact_values(table, rewards).detach() + (0.0 if is_exact else torch.randn(len(PREFIXES)).double())
    is_last = MASK & (MASK.cumsum(1) == MASK.sum(1, keepdim=True))
    scores = torch.where(is_last, rewards[:, None], 0.0)
    advantages = generalized_advantages(scores, values[ROWS], MASK, gamma=1.0, lam=lam).advantages
    found = policy_totals(replace(POLICY_LOSSES["ppo"], mean="constant"), tree_logps(table), MASK, advantages)
    gradient = -torch.autograd.grad((probabilities.detach() * found.losses).sum(), [table])[0]
    error = (gradient - exact_gradient()).abs().max()
    assert (error < 1e-12) == (is_exact or lam == 1)


def settled(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Where the gradient of a loss that holds its own probabilities fixed vanishes: descent, then Newton's method."""

    def gradient(flat: Tensor) -> Tensor:
        logits = flat.view_as(start).clone().requires_grad_()
        return torch.autograd.grad(loss(logits), [logits])[0].flatten()

    found, small = start.flatten(), 1e-5 * torch.eye(start.numel(), dtype=torch.float64)
    for _ in range(80):
        found = found - 3 * gradient(found)
    for _ in range(12):
        curvature = torch.stack([(gradient(found + step) - gradient(found - step)) / 2e-5 for step in small], dim=1)
        # A constant added to all logits of a softmax changes nothing.
        change = torch.linalg.pinv(curvature, rtol=1e-7) @ gradient(found)
        found = found - change * min(1.0, 2.0 / float(change.norm()))
        if change.norm() < 1e-10:
            break
    return found.view_as(start)


BETA = 0.3


def regularized(
    kl: str, logps_of: Callable[[Tensor], Tensor], mask: Tensor, rewards: Tensor, reference: Tensor
) -> Callable[[Tensor], Tensor]:
    """The expected loss of a policy over all answers, with the KL in the reward or in the loss.

    Args:
        kl: `reward`; or `plain`, `corrected` by the ratio of each token, `whole` by that of the answer.
        logps_of: Logits to log-probabilities of tokens [R, T].
        mask: [R, T].
        rewards: [R].
        reference: Of tokens, [R, T].
    """
    loss = replace(POLICY_LOSSES["rloo" if kl in ("reward", "whole") else "dr_grpo"], corrects_kl=kl != "plain")
    if kl != "reward":
        loss = replace(loss, kl_weight=BETA)

    def objective(logits: Tensor) -> Tensor:
        logps = logps_of(logits)
        probabilities = logps.detach().sum(1).exp()
        penalty = (logps.detach() - reference).sum(1) if kl == "reward" else torch.zeros_like(rewards)
        advantages = penalized(rewards, penalty, BETA)
        advantages = advantages - (probabilities * advantages).sum()
        given = None if kl == "reward" else reference
        losses = policy_totals(loss, logps, mask, advantages, reference=given).losses
        return (probabilities * losses).sum()

    return objective


def bandit() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(8, dtype=torch.float64).log_softmax(0), torch.rand(8, dtype=torch.float64)


def bandit_policy(kl: str) -> Tensor:
    """Where a policy of eight one-token answers ends up."""
    reference, rewards = bandit()
    mask = torch.ones(8, 1, dtype=torch.bool)
    loss = regularized(kl, lambda logits: logits.log_softmax(0)[:, None], mask, rewards, reference[:, None])
    return settled(loss, torch.zeros(8, dtype=torch.float64)).softmax(0)


@pytest.mark.parametrize("kl", ["reward", "corrected"])
def test_a_policy_of_one_token_reaches_the_regularized_optimum(kl: str) -> None:
    reference, rewards = bandit()
    found, optimum = bandit_policy(kl), (reference + rewards / BETA).softmax(0)
    assert (found - optimum).abs().sum() / 2 < 1e-9
    value = (found * rewards).sum() - BETA * (found * (found.log() - reference)).sum()
    assert abs(value - BETA * (reference + rewards / BETA).logsumexp(0)) < 1e-12


def test_the_plain_estimate_in_the_loss_has_another_optimum() -> None:
    """pi = beta * reference / (lambda - reward): that of the other divergence."""
    reference, rewards = bandit()
    found = bandit_policy("plain")
    low, high = rewards.max(), rewards.max() + BETA
    for _ in range(60):
        middle = (low + high) / 2
        is_more = (BETA * reference.exp() / (middle - rewards)).sum() > 1
        low, high = (middle, high) if is_more else (low, middle)
    other = BETA * reference.exp() / (high - rewards)
    assert (found - other).abs().sum() / 2 < 1e-9
    assert (found - (reference + rewards / BETA).softmax(0)).abs().sum() / 2 > 0.05


@pytest.mark.parametrize(
    ("kl", "is_exact"), [("reward", True), ("whole", True), ("corrected", False), ("plain", False)]
)
def test_which_kl_reaches_the_optimum_on_answers_of_several_tokens(kl: str, is_exact: bool) -> None:
    """Token by token in the loss, nothing sees what an early token does to later ones."""
    table, _, rewards = tree()
    torch.manual_seed(2)
    rewards = rewards * 2
    reference = tree_logps(torch.randn_like(table)).detach()
    found = tree_logps(settled(regularized(kl, tree_logps, MASK, rewards, reference), torch.zeros_like(table))).sum(1)
    scores = reference.sum(1) + rewards / BETA
    value = (found.exp() * (rewards - BETA * (found - reference.sum(1)))).sum()
    distance = (found.exp() - scores.softmax(0)).abs().sum() / 2
    if is_exact:
        assert distance < 1e-9
        assert abs(value - BETA * scores.logsumexp(0)) < 1e-12
    else:
        assert distance > 0.02
        assert value < BETA * scores.logsumexp(0) - 1e-3
