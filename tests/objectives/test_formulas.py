"""Every objective against its formula, written once more in plain numbers, where the goldens have none."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_sft.losses.segments import Segments
from lit_sft.objectives._base import Answers, ItemLosses
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

STEP = 1e-5
"""Of a difference quotient."""


class Side(NamedTuple):
    """An answer: of each of its tokens the log-probability under policy and reference, and the log of the collisions.

    The prompt is what stands before, whose log-probabilities only ORPO asks for.
    """

    policy: list[float]
    reference: list[float]
    collisions: list[float]
    prompt: list[float]

    @property
    def ratio(self) -> float:
        return sum(self.policy) - sum(self.reference)

    @property
    def mean(self) -> float:
        return sum(self.policy) / len(self.policy)

    @property
    def mean_ratio(self) -> float:
        return self.ratio / len(self.policy)

    @property
    def certainty(self) -> float:
        return (sum(self.policy) - sum(self.collisions)) / len(self.policy)

    def up_to(self, length: int, alpha: float) -> float:
        counts = [1.0] * length + [alpha] * len(self.policy)
        return sum(c * (p - r) for c, p, r in zip(counts, self.policy, self.reference, strict=False))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def log_odds(answer: Side) -> float:
    return answer.mean - math.log(1 - math.exp(answer.mean))


def likelihood(tokens: list[float]) -> float:
    return -sum(tokens) / len(tokens)


def delta(c: Side, r: Side) -> float:
    return c.ratio - r.ratio


def exo(c: Side, r: Side) -> float:
    p = sigmoid(0.3 * delta(c, r))
    q = sigmoid(-0.3 * delta(c, r))
    return p * (log_sigmoid(0.3 * delta(c, r)) - math.log(0.8)) + q * (log_sigmoid(-0.3 * delta(c, r)) - math.log(0.2))


def discopop(c: Side, r: Side) -> float:
    m = 0.1 * delta(c, r)
    share = sigmoid(m / 0.5)
    return -log_sigmoid(m) * (1 - share) + math.exp(log_sigmoid(m / 0.5) - m)


def ld_dpo(c: Side, r: Side) -> float:
    common = min(len(c.policy), len(r.policy))
    return -log_sigmoid(0.1 * (c.up_to(common, 0.3) - r.up_to(common, 0.3)))


def wpo(c: Side, r: Side) -> float:
    return -min(1.0, math.exp(c.certainty + r.certainty)) * log_sigmoid(0.1 * delta(c, r))


def alpha_po(c: Side, r: Side) -> float:
    bent = [(1 - math.exp(-0.1 * side.mean)) / 0.1 for side in (c, r)]
    return -log_sigmoid(2 * (bent[0] - bent[1]) - 1)


FORMULAS: dict[str, tuple[Any, Callable[[Side, Side], float]]] = {
    "dpo": (DPO(0.1), lambda c, r: -log_sigmoid(0.1 * delta(c, r))),
    "dpo, beta 5": (DPO(5.0), lambda c, r: -log_sigmoid(5 * delta(c, r))),
    "dpo by length": (
        DPO(2.0, normalizes_length=True), lambda c, r: -log_sigmoid(2 * (c.mean_ratio - r.mean_ratio))
    ),
    "dpo with a term": (
        DPO(0.1, sft_weight=0.7), lambda c, r: -log_sigmoid(0.1 * delta(c, r)) + 0.7 * likelihood(c.policy)
    ),
    "hinge": (Hinge(0.1), lambda c, r: max(0.0, 1 - 0.1 * delta(c, r))),
    "ipo": (IPO(0.2), lambda c, r: (c.mean_ratio - r.mean_ratio - 1 / 0.4) ** 2),
    "cdpo": (
        CDPO(0.1, label_smoothing=0.2),
        lambda c, r: -0.8 * log_sigmoid(0.1 * delta(c, r)) - 0.2 * log_sigmoid(-0.1 * delta(c, r)),
    ),
    "robust": (
        Robust(0.1, label_smoothing=0.2),
        lambda c, r: (-0.8 * log_sigmoid(0.1 * delta(c, r)) + 0.2 * log_sigmoid(-0.1 * delta(c, r))) / 0.6,
    ),
    "exo": (EXO(0.3, label_smoothing=0.2), exo),
    "nca": (
        NCA(0.1),
        lambda c, r: -log_sigmoid(0.1 * c.ratio) - 0.5 * (log_sigmoid(-0.1 * c.ratio) + log_sigmoid(-0.1 * r.ratio)),
    ),
    "bco": (BCO(0.1, threshold=0.4), lambda c, r: -log_sigmoid(0.1 * c.ratio - 0.4) - log_sigmoid(0.4 - 0.1 * r.ratio)),
    "sppo": (SPPO(0.5), lambda c, r: (c.ratio - 1) ** 2 + (r.ratio + 1) ** 2),
    "apo zero": (APOZero(0.1), lambda c, r: 1 - sigmoid(0.1 * c.ratio) + sigmoid(0.1 * r.ratio)),
    "apo down": (APODown(0.1), lambda c, r: sigmoid(0.1 * c.ratio) + 1 - sigmoid(0.1 * delta(c, r))),
    "discopop": (DiscoPOP(0.1, tau=0.5), discopop),
    "forward kl": (
        FDPO(0.1, divergence="forward_kl"),
        lambda c, r: -log_sigmoid(0.1 * (math.exp(-r.ratio) - math.exp(-c.ratio))),
    ),
    "jensen shannon": (
        FDPO(0.1, divergence="jensen_shannon"),
        lambda c, r: -log_sigmoid(0.1 * (log_sigmoid(c.ratio) - log_sigmoid(r.ratio))),
    ),
    "ld-dpo": (LDDPO(0.1, alpha=0.3), ld_dpo),
    "wpo": (WPO(0.1), wpo),
    "orpo": (ORPO(0.3), lambda c, r: likelihood(c.policy) - 0.3 * log_sigmoid(log_odds(c) - log_odds(r))),
    "orpo with the prompt": (
        ORPO(0.3, likelihood_of="prompt"),
        lambda c, r: likelihood(c.prompt + c.policy) - 0.3 * log_sigmoid(log_odds(c) - log_odds(r)),
    ),
    "simpo": (SimPO(2.5, gamma=1.5), lambda c, r: -log_sigmoid(2.5 * (c.mean - r.mean) - 1.5)),
    "alphapo": (SimPO(2.0, gamma=1.0, alpha=0.1), alpha_po),
    "cpo": (CPO(0.1), lambda c, r: likelihood(c.policy) - log_sigmoid(0.1 * (sum(c.policy) - sum(r.policy)))),
    "cpo, hinge": (
        CPO(0.1, loss="hinge", sft_weight=0.0), lambda c, r: max(0.0, 1 - 0.1 * (sum(c.policy) - sum(r.policy)))
    ),
    "cpo, ipo": (CPO(0.1, loss="ipo", sft_weight=0.0), lambda c, r: (c.mean - r.mean - 5) ** 2),
    "sft": (SFTTerm(0.5), lambda c, r: 0.5 * likelihood(c.policy)),
}  # fmt: skip


@st.composite
def sides(draw: st.DrawFn) -> Side:
    """One token to six, and a prompt that may be empty."""
    size = draw(st.integers(1, 6))

    def numbers(low: float, count: int) -> list[float]:
        return draw(st.lists(st.floats(low, -1e-3), min_size=count, max_size=count))

    return Side(numbers(-12, size), numbers(-12, size), numbers(-3, size), numbers(-9, draw(st.integers(0, 4))))


def flat(answers: list[Side], of: Callable[[Side], list[float]], dtype: torch.dtype) -> tuple[Tensor, Segments]:
    """Tokens of all answers one after the other, as the head gives them."""
    tokens = [of(answer) for answer in answers]
    numbers = torch.tensor([number for number, found in enumerate(tokens) for _ in found], dtype=torch.int64)
    values = torch.tensor([value for found in tokens for value in found], dtype=dtype)
    return values, Segments.of(numbers, len(answers), max(map(len, tokens)) + 1)


def found_by(objective: Any, answers: list[Side], items: Tensor, policy: Tensor, dtype: torch.dtype) -> ItemLosses:
    """What the stages make of log-probabilities of tokens."""
    _, segments = flat(answers, lambda side: side.policy, dtype)
    lengths = segments.lengths
    reference, _ = flat(answers, lambda side: side.reference, dtype)
    collisions, _ = flat(answers, lambda side: side.collisions, dtype)
    prompt, of_prompt = flat(answers, lambda side: side.prompt, dtype)
    return objective(  # type: ignore[no-any-return]
        Answers(
            objective.summed(segments.grid(policy), lengths, items),
            lengths,
            objective.summed(segments.grid(reference), lengths, items),
            segments.sums((policy - collisions).detach()) / lengths,
            segments.sums(policy) + of_prompt.sums(prompt),
            lengths + of_prompt.lengths,
        ),
        items,
    )


def slope(formula: Callable[[Side, Side], float], pair: tuple[Side, Side], side: int, token: int) -> float:
    """Of the formula along the log-probability of one token."""
    values = []
    for step in (-STEP, STEP):
        policy = list(pair[side].policy)
        policy[token] += step
        moved = list(pair)
        # What counts a pair has no gradient.
        collisions = list(pair[side].collisions)
        collisions[token] += step
        moved[side] = pair[side]._replace(policy=policy, collisions=collisions)
        values.append(formula(*moved))
    return (values[1] - values[0]) / (2 * STEP)


@pytest.mark.parametrize("name", FORMULAS)
@settings(max_examples=10)
@given(st.lists(st.tuples(sides(), sides()), min_size=1, max_size=3))
def test_loss_and_gradients_are_those_of_the_formula(name: str, pairs: list[tuple[Side, Side]]) -> None:
    objective, formula = FORMULAS[name]
    answers = [side for pair in pairs for side in pair]
    assume(name != "forward kl" or all(abs(side.ratio) < 30 for side in answers))  # it is cut off at 40
    items = torch.arange(len(answers)).view(-1, 2)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 3e-4)):
        policy = flat(answers, lambda side: side.policy, dtype)[0].requires_grad_()
        found = found_by(objective, answers, items, policy, dtype)
        expected = [formula(*pair) for pair in pairs]
        assert found.losses.tolist() == pytest.approx(expected, rel=tolerance, abs=tolerance)
        if dtype == torch.float64:
            gradients = torch.autograd.grad(found.losses.sum(), [policy])[0].tolist()
    slopes = [
        slope(formula, pair, side, token)
        for pair in pairs
        for side in (0, 1)
        for token in range(len(pair[side].policy))
    ]
    assert gradients == pytest.approx(slopes, rel=1e-3, abs=1e-4 * max(1, *map(abs, expected)))


@given(st.lists(st.tuples(sides(), st.sampled_from([1, 0, -1])), min_size=1, max_size=5))
def test_kto_is_its_formula(judged: list[tuple[Side, int]]) -> None:
    answers = [side for side, _ in judged]
    verdicts = torch.tensor([verdict for _, verdict in judged])
    others = [side.ratio for side, verdict in judged if verdict == -1]
    kl = max(0.0, sum(others) / len(others)) if others else 0.0
    for baseline, above in (("none", 0.0), ("mismatched", kl)):
        objective = KTO(0.2, baseline=baseline, good_weight=1.3, bad_weight=0.7)  # type: ignore[arg-type]
        policy, _ = flat(answers, lambda side: side.policy, torch.float64)
        found = found_by(objective, answers, verdicts, policy, torch.float64)
        expected = [
            {
                1: 1.3 * (1 - sigmoid(0.2 * (side.ratio - above))),
                0: 0.7 * (1 - sigmoid(0.2 * (above - side.ratio))),
                -1: 0.0,
            }[verdict]
            for side, verdict in judged
        ]
        assert found.losses.tolist() == pytest.approx(expected, abs=1e-12)
        assert found.counts.sum() == sum(verdict >= 0 for _, verdict in judged)


def of_tokens(*policy: float, reference: float = 0.0) -> Side:
    """An answer of such tokens, of which the reference gives the first another log-probability."""
    first, *others = policy
    return Side(list(policy), [first - reference, *others], [-1.0] * len(policy), [-2.0])


EXTREMES = {
    "certain of one token": (of_tokens(0.0), of_tokens(-3.0)),
    "certain of the rejected token": (of_tokens(-3.0), of_tokens(0.0)),
    "certain of both": (of_tokens(0.0, 0.0), of_tokens(0.0)),
    "a thousand apart": (of_tokens(-2.0, reference=1000.0), of_tokens(-2.0, reference=-1000.0)),
    "a thousand the wrong way round": (of_tokens(-2.0, reference=-1000.0), of_tokens(-2.0, reference=1000.0)),
    "impossible answers": (of_tokens(-2000.0), of_tokens(-3000.0, -1000.0)),
    "identical": (of_tokens(-1.0, -2.0), of_tokens(-1.0, -2.0)),
}
TRIED = [(name, case) for name in FORMULAS for case in EXTREMES]
# An exponential of the log-probability itself, of which a token would need less than e^-800.
TRIED.remove(("alphapo", "impossible answers"))


@pytest.mark.parametrize(("name", "case"), TRIED)
def test_what_is_certain_or_far_apart_has_finite_losses_and_gradients(name: str, case: str) -> None:
    objective, _ = FORMULAS[name]
    pair = list(EXTREMES[case])
    policy = flat(pair, lambda side: side.policy, torch.float32)[0].requires_grad_()
    found = found_by(objective, pair, torch.tensor([[0, 1]]), policy, torch.float32)
    assert found.losses.isfinite().all()
    assert found.measures.isfinite().all()
    (gradients,) = torch.autograd.grad(found.losses.sum(), [policy])
    assert gradients.isfinite().all()
