"""Losses, metrics and gradients of TRL's DPO, KTO, ORPO and CPO trainers, through head and sums."""

from typing import Any

import pytest
import torch
from preference_goldens import close, equal, subject, tensors, tokens, variants
from torch import Tensor

from lit_sft.objectives._base import Answers, ItemLosses, Objective
from lit_sft.objectives.apo import APODown, APOZero
from lit_sft.objectives.bco import BCO
from lit_sft.objectives.cdpo import CDPO
from lit_sft.objectives.cpo import CPO
from lit_sft.objectives.discopop import DiscoPOP
from lit_sft.objectives.dpo import DPO
from lit_sft.objectives.exo import EXO
from lit_sft.objectives.f_dpo import FDPO
from lit_sft.objectives.hinge import Hinge
from lit_sft.objectives.ipo import IPO
from lit_sft.objectives.kto import KTO
from lit_sft.objectives.ld_dpo import LDDPO
from lit_sft.objectives.nca import NCA
from lit_sft.objectives.orpo import ORPO
from lit_sft.objectives.robust import Robust
from lit_sft.objectives.sft_term import SFTTerm
from lit_sft.objectives.simpo import SimPO
from lit_sft.objectives.sppo import SPPO
from lit_sft.objectives.wpo import WPO

BY_TOKEN: Any = "tokens"

OF_LOSS_TYPE: dict[str, Any] = {
    "sigmoid": lambda c: DPO(c["beta"]),
    "sigmoid_norm": lambda c: DPO(c["beta"], normalizes_length=True),
    "hinge": lambda c: Hinge(c["beta"]),
    "ipo": lambda c: IPO(c["beta"]),
    "robust": lambda c: Robust(c["beta"], label_smoothing=c["label_smoothing"]),
    "exo_pair": lambda c: EXO(c["beta"], label_smoothing=c["label_smoothing"]),
    "nca_pair": lambda c: NCA(c["beta"]),
    "bco_pair": lambda c: BCO(c["beta"]),
    "sppo_hard": lambda c: SPPO(c["beta"]),
    "apo_zero": lambda c: APOZero(c["beta"]),
    "apo_down": lambda c: APODown(c["beta"]),
    "discopop": lambda c: DiscoPOP(c["beta"], tau=c["discopop_tau"]),
    "sft": lambda c: SFTTerm(average=BY_TOKEN),
}
CDPO_VARIANTS = [name for name in variants("dpo") if name.startswith("cdpo")]


def dpo_objective(config: dict[str, Any]) -> Objective:
    first, *others = config["loss_types"]
    if others:
        assert (others, config["loss_weights"][0]) == (["sft"], 1)
        return DPO(config["beta"], sft_weight=config["loss_weights"][1], sft_average=BY_TOKEN)
    if config["f_divergence_type"] != "reverse_kl":
        name: Any = {"forward_kl": "forward_kl", "js_divergence": "jensen_shannon"}[config["f_divergence_type"]]
        return FDPO(config["beta"], divergence=name)
    if config["ld_alpha"] is not None:
        return LDDPO(config["beta"], alpha=config["ld_alpha"])
    if config["use_weighting"]:
        return WPO(config["beta"])
    made: Objective = OF_LOSS_TYPE[first](config)
    return made


def pairs_of(num_rows: int) -> Tensor:
    """The chosen rows stand first."""
    return torch.arange(num_rows).view(2, -1).T


def check(objective: Objective, found: ItemLosses, expected: dict[str, Any], *skipped: str) -> None:
    count = found.counts.sum()
    close(found.losses.sum() / count, expected["loss"])
    metrics = objective.means(float(count), *found.measures.sum(0).tolist())
    for name, value in expected["metrics"].items():
        if name not in skipped:
            close(metrics[name], value)


@pytest.mark.parametrize("variant", variants("dpo", *CDPO_VARIANTS))
def test_dpo_and_its_relatives(variant: str) -> None:
    given, expected = tensors("dpo"), subject("dpo")["variants"][variant]
    objective = dpo_objective(expected["config"])
    ids, mask = given["input_ids"], given["completion_mask"]
    logits = given["policy_logits"].clone().requires_grad_()
    policy, segments = tokens(logits, ids, mask, is_measured=True)
    equal(segments.grid(policy.logps)[:, : ids.shape[1] - 1].detach().sum(1), given["policy_per_token_logps"].sum(1))
    reference_logits = given["policy_logits" if variant == "policy_is_reference" else "reference_logits"]
    with torch.no_grad():
        reference, _ = tokens(reference_logits, ids, mask)
    pairs, lengths = pairs_of(len(ids)), segments.lengths
    answers = Answers(
        objective.summed(segments.grid(policy.logps), lengths, pairs),
        lengths,
        objective.summed(segments.grid(reference.logps), lengths, pairs) if objective.needs_reference else None,
        segments.sums((policy.logps - policy.collisions).detach()) / lengths if objective.needs_certainty else None,
    )
    found = objective(answers, pairs)
    of_head = ("entropy", "num_tokens", "logits/chosen", "logits/rejected", "mean_token_accuracy")
    without_reference = () if objective.needs_reference else tuple(k for k in expected["metrics"] if "rewards/" in k)
    check(objective, found, expected, *of_head, *without_reference)
    close(policy.entropy.mean(), expected["metrics"]["entropy"])
    is_chosen = torch.arange(len(ids)) < len(ids) / 2
    for name, measure, rows in (
        ("logits/chosen", policy.mean_logits, is_chosen),
        ("logits/rejected", policy.mean_logits, ~is_chosen),
        ("mean_token_accuracy", policy.is_first.float(), is_chosen),
    ):
        close(segments.sums(measure)[rows].sum() / lengths[rows].sum(), expected["metrics"][name])
    (found.losses.sum() / len(pairs)).backward()
    equal(logits.grad, given[f"{variant}/grad_policy_logits"])


@pytest.mark.parametrize("variant", CDPO_VARIANTS)
def test_cdpo(variant: str) -> None:
    given, expected = tensors("dpo"), subject("dpo")["variants"][variant]
    config = expected["config"]
    sums = given["policy_per_token_logps"].sum(1).requires_grad_()
    lengths = given["completion_mask"][:, 1:].sum(1)
    objective = CDPO(config["beta"], label_smoothing=config["label_smoothing"])
    answers = Answers(sums, lengths, given["reference_per_token_logps"].sum(1))
    loss = objective(answers, pairs_of(len(sums))).losses.mean()
    close(loss, expected["loss"])
    loss.backward()
    equal(sums.grad, given[f"{variant}/grad_sequence_logps"])


def reference_free(config: dict[str, Any]) -> Objective:
    if config["method"] == "orpo":
        return ORPO(config["beta"], likelihood_of="prompt", sft_average=BY_TOKEN)
    options = {"sft_weight": config["cpo_alpha"], "sft_average": BY_TOKEN}
    if config["loss_type"] == "simpo":
        return SimPO(config["beta"], gamma=config["simpo_gamma"], alpha=config["alpha"], **options)
    return CPO(config["beta"], loss=config["loss_type"], label_smoothing=config["label_smoothing"], **options)


@pytest.mark.parametrize("variant", variants("orpo_cpo_simpo"))
def test_objectives_without_a_reference(variant: str) -> None:
    given, expected = tensors("orpo_cpo_simpo"), subject("orpo_cpo_simpo")["variants"][variant]
    objective = reference_free(expected["config"])
    ids = given["input_ids"]
    logits = given["policy_logits"].clone().requires_grad_()
    policy, segments = tokens(logits, ids, given["completion_mask"])
    whole, all_segments = tokens(logits, ids, given["attention_mask"])
    answers = Answers(
        segments.sums(policy.logps),
        segments.lengths,
        whole_logps=all_segments.sums(whole.logps) if objective.needs_prompts else None,
        whole_lengths=all_segments.lengths if objective.needs_prompts else None,
    )
    found = objective(answers, pairs_of(len(ids)))
    # TRL averages these logits over prompts and padding too, and names a likelihood that has no weight.
    unweighted = () if expected["metrics"]["nll_loss"] else ("nll_loss",)
    check(objective, found, expected, "logits/chosen", "logits/rejected", *unweighted)
    found.losses.mean().backward()
    equal(logits.grad, given[f"{variant}/grad_policy_logits"])


@pytest.mark.parametrize("variant", variants("kto"))
def test_kto(variant: str) -> None:
    given, expected = tensors("kto"), subject("kto")["variants"][variant]
    config = expected["config"]
    objective = KTO(
        config["beta"],
        baseline="none" if config["loss_type"] == "apo_zero_unpaired" else "mismatched",
        good_weight=config["desirable_weight"],
        bad_weight=config["undesirable_weight"],
    )
    logits = given[f"{config['policy']}_logits"].clone().requires_grad_()
    sums, lengths = {}, {}
    for role in ("policy", "reference"):
        for kind in ("", "KL_"):
            table = logits if (role, kind) == ("policy", "") else given[f"{config[role]}_{kind}logits"]
            logps, segments = tokens(table, given[f"{kind}input_ids"], given[f"{kind}completion_mask"])
            sums[role, kind], lengths[kind] = segments.sums(logps.logps), segments.lengths
    verdicts = torch.cat([given["label"].long(), torch.full((len(lengths["KL_"]),), -1)])
    answers = Answers(
        *(torch.cat(both) for both in (
            [sums["policy", ""], sums["policy", "KL_"]],
            [lengths[""], lengths["KL_"]],
            [sums["reference", ""], sums["reference", "KL_"]],
        ))
    )  # fmt: skip
    found = objective(answers, verdicts)
    check(objective, found, expected, "entropy", "num_tokens", "logits/chosen", "logits/rejected")
    (found.losses.sum() / found.counts.sum()).backward()
    equal(logits.grad, given[f"{variant}/grad_policy_logits"])
