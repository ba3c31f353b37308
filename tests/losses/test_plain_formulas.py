"""Losses and advantages beside the formulas written out, one number at a time, for other sizes, types and options."""

import math
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_sft.losses.advantages import (
    EPSILON,
    batch_normalized,
    group_advantages,
    leave_one_out_advantages,
    penalized,
    separate_group_advantages,
    weighted_sum,
)
from lit_sft.losses.gae import generalized_advantages, token_rewards, value_losses
from lit_sft.losses.kl import k1
from lit_sft.losses.moments import whitened
from lit_sft.losses.policy import POLICY_LOSSES, PolicyLoss, policy_totals

SEEDS = st.integers(0, 2**31)
TYPES = st.sampled_from([torch.float32, torch.float64])


def near(found: Tensor, expected: list[float], dtype: torch.dtype) -> None:
    """Up to the rounding of a type."""
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(
        found.double(), torch.tensor(expected, dtype=torch.float64), rtol=tolerance, atol=tolerance
    )


@st.composite
def losses(draw: Any) -> PolicyLoss:
    """A published one, or any mixture."""
    if draw(st.booleans()):
        return POLICY_LOSSES[draw(st.sampled_from(sorted(POLICY_LOSSES)))]
    return PolicyLoss(
        ratio=draw(st.sampled_from(["token", "mean", "answer"])),
        mean=draw(st.sampled_from(["tokens", "answers", "constant"])),
        clip_low=draw(st.sampled_from([0.05, 0.3])),
        clip_high=draw(st.sampled_from([0.05, 0.3])),
        clips_weight=draw(st.booleans()),
        largest_ratio=draw(st.sampled_from([None, 1.2])),
        kl_weight=draw(st.sampled_from([0.0, 0.3])),
        corrects_kl=draw(st.booleans()),
        entropy_weight=draw(st.sampled_from([0.0, 0.1])),
    )


def plain_policy_loss(
    loss: PolicyLoss, rows: list[tuple[Tensor, ...]], advantages: list[float], max_tokens: int
) -> Tensor:
    """The mean loss of rows (new, old, reference, entropy), each as long as its answer."""
    of_rows, count = [], 0
    for (new, old, reference, entropy), advantage in zip(rows, advantages, strict=True):
        length = len(new)
        whole = sum((new[t] - old[t] for t in range(length)), torch.zeros((), dtype=torch.float64))
        terms = []
        for t in range(length):
            ratio = {"token": new[t] - old[t], "mean": whole / length, "answer": whole}[loss.ratio].exp()
            now = ratio.item()
            if loss.clips_weight:
                gain = min(now, 1 + loss.clip_high) * advantage * new[t]
            else:
                capped = ratio if loss.largest_ratio is None or ratio <= loss.largest_ratio else loss.largest_ratio
                inside = min(max(now, 1 - loss.clip_low), 1 + loss.clip_high)
                held = ratio if inside == now else inside
                gain = torch.minimum(*(torch.as_tensor(x * advantage, dtype=torch.float64) for x in (capped, held)))
            distance = reference[t] - new[t]
            kl = (distance.exp() - distance - 1) * (ratio if loss.corrects_kl else 1)
            terms.append(
                (-torch.as_tensor(gain, dtype=torch.float64), loss.kl_weight * kl - loss.entropy_weight * entropy[t])
            )
        if loss.ratio == "answer":
            # One gain for the answer, unless each token weighs its own log-probability.
            gains = [gain for gain, _ in terms] if loss.clips_weight else [terms[0][0]]
            of_rows.append(torch.stack([*gains, *(term for _, term in terms)]).sum())
            count += 1
        else:
            total = sum((gain + term for gain, term in terms), torch.zeros((), dtype=torch.float64))
            of_rows.append(total / {"tokens": 1, "answers": length, "constant": max_tokens}[loss.mean])
            count += length if loss.mean == "tokens" else 1
    return torch.stack(of_rows).sum() / count


@settings(max_examples=100)
@given(loss=losses(), seed=SEEDS, num_rows=st.integers(1, 4), width=st.integers(1, 5), dtype=TYPES)
def test_a_policy_loss_is_its_formula(
    loss: PolicyLoss, seed: int, num_rows: int, width: int, dtype: torch.dtype
) -> None:
    if loss.clips_weight and loss.ratio == "answer":
        loss = PolicyLoss(clips_weight=True, clip_high=loss.clip_high)  # no published loss weighs so
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (num_rows,), generator=random)
    mask = torch.arange(width) < lengths[:, None]
    old = -torch.rand(num_rows, width, generator=random, dtype=torch.float64) * 3
    new, reference = (old + 0.3 * torch.randn(num_rows, width, generator=random).double() for _ in range(2))
    entropy = torch.rand(num_rows, width, generator=random, dtype=torch.float64)
    advantages = torch.randn(num_rows, generator=random).double()

    given_new = new.to(dtype).requires_grad_()
    found = policy_totals(
        loss,
        given_new,
        mask,
        advantages.to(dtype),
        old=old.to(dtype),
        reference=reference.to(dtype) if loss.kl_weight else None,
        entropy=entropy.to(dtype) if loss.entropy_weight else None,
        max_tokens=width,
    )
    mean = found.losses.sum() / found.counts.sum()
    (gradient,) = torch.autograd.grad(mean, [given_new])

    plain_new = new.clone().requires_grad_()
    rows = [
        tuple(grid[row, :length] for grid in (plain_new, old, reference, entropy))
        for row, length in enumerate(lengths.tolist())
    ]
    expected = plain_policy_loss(loss, rows, advantages.tolist(), width)
    (expected_gradient,) = torch.autograd.grad(expected, [plain_new], materialize_grads=True)
    near(mean.detach()[None], [expected.item()], dtype)
    near(gradient.flatten(), expected_gradient.flatten().tolist(), dtype)


def plain_std(values: list[float]) -> float:
    mean = sum(values) / max(len(values), 1)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)) if len(values) > 1 else 0.0


def plain_group(rewards: list[float], size: int, scale: str) -> list[float]:
    """GRPO's; NaN is unscored."""
    found = []
    everybody = plain_std([reward for reward in rewards if not math.isnan(reward)])
    for first in range(0, len(rewards), size):
        group = rewards[first : first + size]
        scored = [reward for reward in group if not math.isnan(reward)]
        mean = sum(scored) / max(len(scored), 1)
        divisor = {"group": plain_std(scored) + EPSILON, "batch": everybody + EPSILON, "none": 1.0}[scale]
        found += [0.0 if math.isnan(reward) else (reward - mean) / divisor for reward in group]
    return found


def plain_others(rewards: list[float], size: int) -> list[float]:
    """RLOO's."""
    found = []
    for number, reward in enumerate(rewards):
        first = number // size * size
        others = [r for place, r in enumerate(rewards[first : first + size], first) if place != number]
        others = [r for r in others if not math.isnan(r)]
        is_compared = others and not math.isnan(reward)
        found.append(reward - sum(others) / len(others) if is_compared else 0.0)
    return found


def plain_normalized(values: list[float]) -> list[float]:
    kept = [value for value in values if not math.isnan(value)]
    mean, std = sum(kept) / max(len(kept), 1), plain_std(kept)
    return [0.0 if math.isnan(value) else (value - mean) / (std + EPSILON) for value in values]


@given(
    seed=SEEDS,
    groups=st.integers(1, 4),
    size=st.integers(2, 6),
    unscored=st.sampled_from([0.0, 0.3]),
    dtype=TYPES,
    scale=st.sampled_from(["group", "batch", "none"]),
)
def test_advantages_are_their_formulas(
    seed: int, groups: int, size: int, unscored: float, dtype: torch.dtype, scale: Any
) -> None:
    random = torch.Generator().manual_seed(seed)
    count, weights = groups * size, [0.5, 2.0]
    each = torch.randn(count, 2, generator=random, dtype=torch.float64)
    each = each.masked_fill(torch.rand(count, 2, generator=random) < unscored, math.nan)
    rows = each.tolist()
    sums = [
        math.nan if all(map(math.isnan, row)) else sum(w * r for w, r in zip(weights, row, strict=True) if r == r)
        for row in rows
    ]
    rewards = weighted_sum(each.to(dtype), weights)
    near(group_advantages(rewards, size, scale), plain_group(sums, size, scale), dtype)
    near(leave_one_out_advantages(rewards, size), plain_others(sums, size), dtype)
    near(batch_normalized(rewards), plain_normalized(sums), dtype)

    kl = torch.randn(count, generator=random, dtype=torch.float64)
    paid = [min(max(s, -1.0), 0.5) - 0.3 * k for s, k in zip(sums, kl.tolist(), strict=True)]
    paid = [math.nan if s != s else p for s, p in zip(sums, paid, strict=True)]
    penalty = penalized(rewards, kl.to(dtype), 0.3, (-1.0, 0.5))
    near(leave_one_out_advantages(penalty, size), plain_others(paid, size), dtype)

    by_reward = [plain_group([row[number] for row in rows], size, "group") for number in (0, 1)]
    together = [
        math.nan if s != s else sum(w * of[place] for w, of in zip(weights, by_reward, strict=True))
        for place, s in enumerate(sums)
    ]
    near(separate_group_advantages(each.to(dtype), size, weights), plain_normalized(together), dtype)


@given(
    seed=SEEDS,
    num_rows=st.integers(1, 5),
    width=st.integers(1, 7),
    gamma=st.sampled_from([1.0, 0.9, 0.0]),
    lam=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    clip=st.sampled_from([None, 0.1, 1.0]),
    dtype=TYPES,
)
def test_what_ppo_makes_of_an_answer_is_its_formulas(
    seed: int, num_rows: int, width: int, gamma: float, lam: float, clip: float | None, dtype: torch.dtype
) -> None:
    """A_t = sum of (gamma lam)^l d_(t+l): forwards, where ours goes backwards."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (num_rows,), generator=random).tolist()
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    old, reference, values, new_values = torch.randn(4, num_rows, width, generator=random, dtype=torch.float64).unbind()
    scores = torch.randn(num_rows, generator=random, dtype=torch.float64)
    advantages, returns = ([[0.0] * width for _ in lengths] for _ in range(2))
    losses = []
    for row, length in enumerate(lengths):
        paid = [-0.2 * float(old[row, t] - reference[row, t]) for t in range(length)]
        paid[-1] += float(scores[row])
        own = [*values[row, :length].tolist(), 0.0]
        errors = [paid[t] + gamma * own[t + 1] - own[t] for t in range(length)]
        loss = 0.0
        for t in range(length):
            advantages[row][t] = sum((gamma * lam) ** (s - t) * errors[s] for s in range(t, length))
            returns[row][t] = advantages[row][t] + own[t]
            error = (float(new_values[row, t]) - returns[row][t]) ** 2
            if clip is not None:
                moved = min(max(float(new_values[row, t]) - own[t], -clip), clip)
                error = max(error, (own[t] + moved - returns[row][t]) ** 2)
            loss += 0.5 * error
        losses.append(loss)
    cast = [grid.to(dtype) for grid in (old, reference, values, new_values)]
    rewards = token_rewards(scores.to(dtype), k1(cast[0], cast[1]), mask, 0.2)
    found = generalized_advantages(rewards, cast[2], mask, gamma=gamma, lam=lam)
    near(found.advantages.flatten(), [a for row in advantages for a in row], dtype)
    near((found.returns * mask).flatten(), [r for row in returns for r in row], dtype)
    near(value_losses(cast[3], cast[2], found.returns, mask, clip), losses, dtype)
    kept = [a for row, length in zip(advantages, lengths, strict=True) for a in row[:length]]
    mean = sum(kept) / len(kept)
    if len(kept) > 1 and plain_std(kept) > 0.1:
        white = [(a - mean) / math.sqrt(plain_std(kept) ** 2 + 1e-8) for a in kept]
        near(whitened(found.advantages, mask)[mask], white, dtype)
