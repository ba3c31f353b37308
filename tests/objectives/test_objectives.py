"""What each objective converges to, where that is known, and what must not change it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_sft.configuration import build
from lit_sft.errors import ConfigError
from lit_sft.objectives._base import Answers, ItemLosses, Objective
from lit_sft.objectives._pairs import PairObjective
from lit_sft.objectives.cdpo import CDPO
from lit_sft.objectives.dpo import DPO
from lit_sft.objectives.hinge import Hinge
from lit_sft.objectives.ipo import IPO
from lit_sft.objectives.kto import KTO
from lit_sft.objectives.orpo import ORPO
from lit_sft.objectives.wpo import WPO
from lit_sft.plugins import discover

MEMBERS: dict[str, Any] = discover("lit_sft.objectives._base.Objective")
ON_PAIRS = [name for name, member in MEMBERS.items() if issubclass(member, PairObjective)]
WITH_REFERENCE = [name for name in ON_PAIRS if MEMBERS[name].needs_reference]


def answers(size: int = 8, **changed: Any) -> Answers:
    """Of all kinds of numbers that an objective may need."""
    lengths = torch.randint(2, 9, (size,))
    sums = -torch.rand(size, dtype=torch.float64) * lengths - lengths
    values = {
        "logps": sums,
        "reference": sums + torch.randn(size, dtype=torch.float64),
        "lengths": lengths,
        "certainty": -torch.rand(size, dtype=torch.float64),
        "whole_logps": sums - 5,
        "whole_lengths": lengths + 3,
    } | changed
    values["logps"] = values["logps"].clone().requires_grad_()
    return Answers(**values)


def gradient(found: ItemLosses, given: Answers) -> Tensor:
    return torch.autograd.grad(found.losses.sum(), [given.logps])[0]


def minimize(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int = 30) -> Tensor:
    """Where the gradient vanishes, in float64."""
    found = start.double().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [found], max_iter=steps, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(found)
        value.backward()
        return value

    for _ in range(6):
        optimizer.step(closure)
    return found.detach()


def test_dpo_finds_the_rewards_behind_bradley_terry_preferences() -> None:
    """The policy becomes softmax(log reference + reward / beta)."""
    beta, rewards = 0.4, torch.rand(8, dtype=torch.float64)
    reference = torch.randn(8, dtype=torch.float64).log_softmax(0)
    pairs = torch.tensor([(one, other) for one in range(8) for other in range(8) if one != other])
    share = (rewards[pairs[:, 0]] - rewards[pairs[:, 1]]).sigmoid()

    def loss(logits: Tensor) -> Tensor:
        given = Answers(logits.log_softmax(0), torch.ones(8, dtype=torch.int64), reference)
        return (share * DPO(beta)(given, pairs).losses).sum() / share.sum()

    policy = minimize(loss, reference).log_softmax(0)
    found = beta * (policy - reference)
    torch.testing.assert_close(found - found.mean(), rewards - rewards.mean(), rtol=0, atol=1e-6)
    optimum = (reference + rewards / beta).softmax(0)
    assert (policy.exp() - optimum).abs().sum() / 2 < 1e-6


@pytest.mark.parametrize(
    ("objective", "margin"),
    [(IPO(0.1), 5.0), (CDPO(0.1, label_smoothing=0.1), math.log(9) / 0.1), (Hinge(0.1), 10.0)],
    ids=lambda value: type(value).__name__,
)
def test_where_the_log_ratios_of_one_pair_end_up(objective: Objective, margin: float) -> None:
    """1 / (2 beta), log((1 - e) / e) / beta, 1 / beta; for IPO in means over the tokens of an answer."""
    lengths, pair = torch.tensor([4, 2]), torch.tensor([[0, 1]])

    def given(logps: Tensor) -> Answers:
        return Answers(logps, lengths, torch.tensor([-7.0, -3.0], dtype=torch.float64))

    found = given(minimize(lambda logps: objective(given(logps), pair).losses.sum(), torch.tensor([-7.0, -3.0])))
    ratios = found.mean_ratios if isinstance(objective, IPO) else found.ratios
    reached = float(ratios[0] - ratios[1])
    if isinstance(objective, Hinge):
        assert reached >= margin
    else:
        assert reached == pytest.approx(margin, rel=1e-6)


def test_a_policy_that_is_the_reference_has_a_loss_of_ln_2_and_prefers_nothing() -> None:
    given = answers()
    given = answers(reference=given.logps.detach(), logps=given.logps.detach())
    pairs = torch.arange(8).view(4, 2)
    found = DPO(0.1)(given, pairs)
    torch.testing.assert_close(found.losses.detach(), torch.full((4,), math.log(2), dtype=torch.float64))
    metrics = DPO(0.1).means(4, *found.measures.sum(0).tolist())
    assert metrics["rewards/margins"] == metrics["rewards/accuracies"] == 0
    expected = torch.tensor([-0.05, 0.05], dtype=torch.float64).repeat(4)
    torch.testing.assert_close(gradient(found, given), expected)


@pytest.mark.parametrize("name", ON_PAIRS)
def test_swapping_the_sides_negates_the_margin(name: str) -> None:
    given, pairs = answers(), torch.arange(8).view(4, 2)
    objective = MEMBERS[name]()
    place = objective.measures.index("rewards/margins")
    margins = [objective(given, items).measures[:, place] for items in (pairs, pairs.flip(1))]
    assert torch.equal(margins[0], -margins[1])


@pytest.mark.parametrize("name", ON_PAIRS)
def test_a_loss_of_identical_answers_teaches_nothing_to_tell_them_apart(name: str) -> None:
    """Both are one sequence here, so that what raises one lowers the other."""
    given, pairs = answers(), torch.tensor([[3, 3]])
    objective = MEMBERS[name](**({} if name == "SFTTerm" else {"sft_weight": 0.0}))
    found = objective(given, pairs)
    assert not found.measures[0, objective.measures.index("rewards/accuracies")]
    if name in ("NCA", "BCO", "SPPO", "APOZero", "APODown", "SFTTerm"):
        return  # hold each answer for itself
    assert not gradient(found, given).any()


@pytest.mark.parametrize("name", ON_PAIRS)
def test_sums_do_not_depend_on_how_a_step_is_cut_into_micro_batches(name: str) -> None:
    given, pairs = answers(), torch.arange(8).view(4, 2)
    objective = MEMBERS[name](**({} if name == "SFTTerm" else {"sft_weight": 0.3}))
    whole = objective(given, pairs)
    parts = [objective(given, pairs[:1]), objective(given, pairs[1:])]
    for cut in ("losses", "counts", "measures", "sequences"):
        together = torch.cat([getattr(part, cut) for part in parts])
        torch.testing.assert_close(together, getattr(whole, cut), rtol=1e-12, atol=1e-12)


def test_the_term_by_tokens_depends_on_the_cut_and_says_so() -> None:
    given, pairs = answers(), torch.arange(8).view(4, 2)
    by_tokens = DPO(sft_weight=1.0, sft_average="tokens")
    whole = by_tokens(given, pairs).losses.sum()
    cut = by_tokens(given, pairs[:1]).losses.sum() + by_tokens(given, pairs[1:]).losses.sum()
    assert not torch.isclose(whole, cut)
    assert "the cut matters" in " ".join(str(PairObjective.__doc__).split())


@pytest.mark.parametrize("name", MEMBERS)
def test_an_objective_reads_what_it_says_it_needs_and_nothing_else(name: str) -> None:
    objective = MEMBERS[name]()
    given = answers()
    needed = Answers(
        given.logps,
        given.lengths,
        given.reference if objective.needs_reference else None,
        given.certainty if objective.needs_certainty else None,
        given.whole_logps if objective.needs_prompts else None,
        given.whole_lengths if objective.needs_prompts else None,
    )
    items = torch.arange(8).view(4, 2) if objective.items == "pairs" else torch.tensor([1, 0, 1, -1, -1, 0, 1, 0])
    found = objective(needed, items)
    assert found.losses.shape == found.counts.shape == found.sequences.shape
    assert found.measures.shape == (len(found.losses), len(objective.measures))
    assert not found.measures.requires_grad
    metrics = objective.means(float(found.counts.sum()), *found.measures.sum(0).tolist())
    assert all(math.isfinite(value) for value in metrics.values())


def test_items_are_added_up_by_the_corpus_of_their_answers() -> None:
    given, pairs = answers(), torch.arange(8).view(4, 2)
    found = DPO()(given, pairs)
    groups = torch.tensor([0, 0, 2, 2, 0, 0, 2, 2])
    sums = found.by_group(groups, 3)
    assert sums.dtype == torch.float64
    assert not sums.requires_grad
    assert sums[:, 1].tolist() == [2, 0, 2]
    torch.testing.assert_close(sums[2, 0], found.losses[[1, 3]].sum().detach())
    torch.testing.assert_close(sums[0, 2:], found.measures[[0, 2]].sum(0))


def test_an_answer_in_several_pairs_gets_the_gradients_of_all_of_them() -> None:
    given = answers(3)
    ranked = torch.tensor([[0, 1], [0, 2], [1, 2]])
    together = gradient(DPO()(given, ranked), given)
    alone = torch.stack([gradient(DPO()(given, pair[None]), given) for pair in ranked]).sum(0)
    torch.testing.assert_close(together, alone)


def test_orpo_takes_the_answer_alone_unless_told_to_take_its_prompt_too() -> None:
    assert not ORPO().needs_prompts
    given, pairs = answers(), torch.arange(8).view(4, 2)
    by_answer, by_all = (ORPO(likelihood_of=of)(given, pairs).measures[:, 6] for of in ("answer", "prompt"))
    chosen = given[pairs[:, 0]]
    assert chosen.whole_logps is not None
    assert chosen.whole_lengths is not None
    torch.testing.assert_close(by_answer, (-chosen.logps / chosen.lengths).detach())
    torch.testing.assert_close(by_all, -chosen.whole_logps / chosen.whole_lengths)


def test_the_baseline_of_kto_is_that_of_other_prompts_and_has_no_gradient() -> None:
    given = answers(4, reference=torch.tensor([-9.0, -9, -20, -22], dtype=torch.float64))
    verdicts = torch.tensor([1, 0, -1, -1])
    found = KTO(0.1, baseline="mismatched")(given, verdicts)
    kl = given.ratios[2:].mean().detach()
    assert kl > 0
    assert found.counts.tolist() == [1, 1, 0, 0]
    expected = [1 - F.sigmoid(0.1 * (given.ratios[0] - kl)), 1 - F.sigmoid(0.1 * (kl - given.ratios[1]))]
    torch.testing.assert_close(found.losses, torch.stack([*expected, kl * 0, kl * 0]))
    assert gradient(found, given)[2:].tolist() == [0, 0]
    metrics = KTO(0.1).means(2, *found.measures.sum(0).tolist())
    assert metrics["kl"] == pytest.approx(kl.item())
    assert metrics["rewards/chosen"] == pytest.approx(0.1 * given.ratios[0].item())
    alone = KTO(0.1, baseline="mismatched")(given, torch.tensor([1, 0, 1, 0]))
    assert torch.equal(alone.losses[:2], KTO(0.1)(given, verdicts).losses[:2])
    only_good = KTO(0.1).means(1, *found.measures[0].tolist())
    assert "rewards/rejected" not in only_good


def test_a_pair_that_the_policy_would_have_written_counts_once_and_another_one_less() -> None:
    certainty = torch.tensor([0.5, -0.1, -1.0, -2.0], dtype=torch.float64)
    given = answers(4, certainty=certainty)
    pairs = torch.tensor([[0, 1], [2, 3]])
    shares = WPO()(given, pairs).losses / DPO()(given, pairs).losses
    assert shares.tolist() == pytest.approx([1, math.exp(-3)])


def test_a_configuration_names_an_objective() -> None:
    made = build("objective", Objective, {"class_path": "DPO", "init_args": {"beta": 0.3, "sft_weight": 0.2}})
    assert isinstance(made, DPO)
    assert (made.beta, made.sft_weight) == (0.3, 0.2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *(("DPO", {"beta": beta}, "beta is .*; it must be above 0") for beta in (0.0, -1.0)),
        ("KTO", {"beta": 0.0}, "beta is 0.0; it must be above 0"),
        ("DPO", {"sft_weight": -1.0}, "sft_weight is -1.0; it must not be below 0"),
        ("Robust", {"label_smoothing": 0.5}, "label_smoothing is 0.5; it must be at least 0 and below 0.5"),
        ("EXO", {"label_smoothing": 0.0}, "label_smoothing is 0; EXO needs it above 0"),
        ("LDDPO", {"alpha": 1.5}, "alpha is 1.5; it must be from 0 to 1"),
        ("CPO", {"loss": "hinge", "label_smoothing": 0.1}, "label_smoothing has no meaning with loss hinge"),
    ],
)
def test_options_without_meaning_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MEMBERS[name](**options)
