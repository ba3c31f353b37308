"""Advantages of answers within their group: goldens, and what is not scored."""

import math

import pytest
import torch
from preference_goldens import close, equal, subject, tensors, variants

from lit_sft.losses.advantages import (
    batch_normalized,
    group_advantages,
    leave_one_out_advantages,
    penalized,
    separate_group_advantages,
    spreads,
    weighted_sum,
)
from lit_sft.losses.kl import k1
from lit_sft.losses.moments import mean_and_variance, moments


@pytest.mark.parametrize("variant", variants("advantages"))
def test_golden(variant: str) -> None:
    given, expected = tensors("advantages"), subject("advantages")["variants"][variant]
    config, metrics, group = expected["config"], expected["metrics"], subject("advantages")["group"]
    each = given["rewards_unscored" if config.get("unscored") else "rewards"]
    each = each.masked_fill(each == -999, math.nan)
    weights = config.get("weights", [1.0, 1.0])
    rewards = weighted_sum(each, weights)
    mean, variance = mean_and_variance(moments(rewards, ~rewards.isnan()))
    close(mean, metrics["reward"])
    close(variance.sqrt(), metrics["reward_std"])
    if "beta" in config:
        kl = (k1(given["old_logps"], given["reference_logps"]) * given["completion_mask"]).sum(1)
        if config["beta"]:
            close(kl.sum() / given["completion_mask"].sum(), metrics["kl"])
        clip = config.get("reward_clip_range")
        rewards = penalized(rewards, kl, config["beta"], tuple(clip) if clip else None)
        found = leave_one_out_advantages(rewards, group)
        if config.get("normalize_advantages"):
            found = batch_normalized(found)
    elif "multi_objective_aggregation" in config:
        found = separate_group_advantages(each, group, weights)
    else:
        found = group_advantages(rewards, group, config["scale_rewards"])
    if config.get("scale_rewards") != "batch" and "multi_objective_aggregation" not in config:
        close((spreads(rewards, group) == 0).float().mean(), metrics["frac_reward_zero_std"])
    equal(found, given[f"{variant}/advantages"])


@pytest.mark.parametrize("advantage", [group_advantages, leave_one_out_advantages])
@pytest.mark.parametrize("missing", [math.nan, math.inf, -math.inf])
def test_an_answer_that_is_not_scored_has_no_part_in_its_group(advantage: object, missing: float) -> None:
    assert callable(advantage)
    scored, unscored = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, missing, 2.0, 6.0])
    assert advantage(unscored, 4)[[0, 2, 3]].tolist() == pytest.approx(advantage(scored, 3).tolist())
    assert advantage(unscored, 4)[1] == 0
    alone = advantage(torch.tensor([missing, 3.0, missing, missing]), 2)
    assert alone.tolist() == [0, 0, 0, 0]


def test_equal_rewards_teach_nothing() -> None:
    rewards = torch.tensor([2.0, 2, 2, 1, 2, 3])
    assert group_advantages(rewards, 3)[:3].tolist() == [0, 0, 0]
    assert leave_one_out_advantages(rewards, 3).tolist() == [0, 0, 0, -1.5, 0, 1.5]
    assert spreads(rewards, 3).tolist() == [0, 1]


def test_moments_of_two_devices_add_up_to_those_of_one() -> None:
    rewards = torch.randn(8)
    rewards[3] = math.nan
    sums = torch.stack([moments(part, ~part.isnan()) for part in rewards.split(4)]).sum(0)
    whole = group_advantages(rewards, 4, "batch")
    parts = [group_advantages(part, 4, "batch", sums) for part in rewards.split(4)]
    torch.testing.assert_close(torch.cat(parts), whole)
    torch.testing.assert_close(mean_and_variance(sums)[1].float(), rewards[~rewards.isnan()].var())


def test_a_reward_is_the_sum_of_those_that_are_scored() -> None:
    rewards = torch.tensor([[1.0, 2.0], [math.nan, 2.0], [math.nan, math.nan]])
    found = weighted_sum(rewards, [2.0, 1.0])
    assert found[:2].tolist() == [4, 2]
    assert found[2].isnan()
