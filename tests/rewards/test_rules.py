"""What each rule gives, by worked examples, and what a configuration may say of rewards."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_sft.configuration import build
from lit_sft.conversation import Message
from lit_sft.errors import ConfigError
from lit_sft.rewards._base import Answered, RewardFunction
from lit_sft.rewards._together import check_rewards, score_answers
from lit_sft.rewards.matches import Matches
from lit_sft.rewards.no_end import NoEnd
from lit_sft.rewards.overlong import Overlong
from lit_sft.rewards.pattern import Pattern
from lit_sft.rewards.repetition import Repetition

PROMPT = [Message("user", "渡船几点开？")]


def said(answer: str = "八点。", **known: Any) -> Answered:
    return Answered(PROMPT, answer, **known)


def one(reward: RewardFunction, answered: Answered) -> float | None:
    (found,) = reward.score([answered])
    return found


def built(*rewards: dict[str, Any]) -> list[RewardFunction]:
    return build("rewards", list[RewardFunction], list(rewards))  # type: ignore[no-any-return]


class Given(RewardFunction):
    """Scores that a test has chosen; a reward of a user's own, who leaves the constructor of the base aside."""

    def __init__(self, scores: Any = ()) -> None:
        self.scores = scores

    def score(self, answers: Sequence[Answered]) -> list[float | None]:
        return list(self.scores) or [float(len(answered.answer)) for answered in answers]


def test_an_answer_that_was_cut_costs_one() -> None:
    assert NoEnd().score([said(is_ended=False), said()]) == [-1, 0]


@pytest.mark.parametrize(
    ("num_tokens", "expected"), [(0, 0), (80, 0), (81, -0.05), (90, -0.5), (100, -1), (101, -1), (9999, -1)]
)
def test_the_penalty_on_length_grows_over_the_last_tokens_as_in_dapo(num_tokens: int, expected: float) -> None:
    assert one(Overlong(100, 20), said(num_tokens=num_tokens)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("n", "text", "expected"),
    [
        (4, "", 0),
        (4, "好好好", 0),
        (4, "好好好好", 0),
        (4, "好好好好好", -1 / 2),
        (4, "好" * 103, -99 / 100),
        (4, "今天天气很好。", 0),
        (4, "abcdabcd", -1 / 5),
        (2, "abab", -1 / 3),
        (1, "好的好", -1 / 3),
    ],
)
def test_repetition_is_the_share_of_ngrams_that_occurred_before(n: int, text: str, expected: float) -> None:
    assert one(Repetition(n), said(text)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("八点。", "八点。", 1),
        ("渡船八点 开。", "八点开", 1),
        ("答案是４２。", "42", 1),
        ("ＡＢＣ", "abc", 0),
        ("九点。", "八点", 0),
        ("一加一等于12", "2", 0),
        ("一加一等于2.5", "2", 0),
        ("一加一等于2.", "2", 1),
        ("1. 2", "2", 1),
        ("它是 Because", "B", 0),
        ("选B。", "B", 1),
        ("the answer is B", "B", 1),
        ("价格为（3）元", "(3)", 1),
        ("八点。", None, None),
        ("八点。", "", None),
        ("八点。", " \u3000\n", None),
        ("", "八点", 0),
    ],
)
def test_a_reference_is_found_whatever_blanks_and_width_but_not_within_a_longer_number_or_word(
    answer: str, reference: str | None, expected: float | None
) -> None:
    assert one(Matches(), said(answer, reference=reference)) == expected


def test_a_pattern_is_found_anywhere_and_over_lines() -> None:
    refusals, format_ = Pattern("抱歉|无法|不能"), Pattern(r"\A<think>.+</think>.+\Z")
    assert refusals.score([said("很抱歉。"), said("好。")]) == [1, 0]
    assert format_.score([said("<think>一\n二</think>\n三"), said("一<think>二</think>三")]) == [1, 0]


def test_the_sum_has_weights_leaves_out_what_has_no_opinion_and_keeps_each_reward_apart() -> None:
    rewards = built(
        {"class_path": "NoEnd", "init_args": {"weight": 0.5}},
        {"class_path": "Matches", "init_args": {"weight": 2, "name": "right"}},
        {"class_path": "Pattern", "init_args": {"expression": "。", "weight": 0}},
    )
    answers = [said("八点。", reference="八点"), said("九点", reference="八点", is_ended=False), said("八点")]
    scores = score_answers(rewards, answers)
    torch.testing.assert_close(scores.total, torch.tensor([2.0, -0.5, 0.0]))
    expected = {"no_end": [0, -1, 0], "right": [1, 0, math.nan], "pattern": [1, 0, 0]}
    for name, values in scores.by_name().items():
        torch.testing.assert_close(values, torch.tensor(expected.pop(name), dtype=torch.float32), equal_nan=True)
    assert not expected


def test_what_is_missing_or_not_finite_is_unscored() -> None:
    scores = score_answers([Given([None, math.nan, math.inf, -math.inf, 3])], [said()] * 5)
    assert scores.total.isnan().tolist() == [True] * 4 + [False]
    assert score_answers([Given()], []).total.shape == (0,)


def test_a_class_of_ones_own_is_named_by_its_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_mine.py").write_text(
        "from lit_sft.rewards._base import RewardFunction\n\n\n"
        "class Brief(RewardFunction):\n"
        "    def __init__(self, most: int, **kwargs):\n"
        "        super().__init__(**kwargs)\n"
        "        self.most = most\n\n"
        "    def score(self, answers):\n"
        "        return [len(answered.answer) <= self.most for answered in answers]\n\n\n"
        "class Plain(RewardFunction):\n"
        "    def score(self, answers):\n"
        "        return [1] * len(answers)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    rewards = built(
        {"class_path": "of_mine.Brief", "init_args": {"most": 2, "weight": 3}},
        {"class_path": "of_mine.Plain", "init_args": {"weight": -1}},
    )
    scores = score_answers(rewards, [said("好"), said("八点开。")])
    assert scores.names == ["brief", "plain"]
    assert scores.total.tolist() == [2, -1]


def test_a_class_that_does_not_call_its_base_has_the_weight_one() -> None:
    scores = score_answers([Given([2, 3])], [said()] * 2)
    assert (scores.total.tolist(), scores.names) == ([2, 3], ["given"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Overlong(100, 0), "buffer_tokens must be at least 1 and at most max_tokens"),
        (lambda: Overlong(100, 101), "buffer_tokens must be at least 1 and at most max_tokens"),
        (lambda: Repetition(0), "n 0; it must be at least 1"),
        (lambda: Pattern("(抱歉"), "not a regular expression: missing \\), unterminated subpattern at position 0"),
        (lambda: NoEnd(weight=math.nan), "the weight of the reward NoEnd is nan"),
        (lambda: NoEnd(name="a/b"), "name 'a/b'; use letters"),
        (lambda: check_rewards([]), "empty list"),
        (lambda: check_rewards([NoEnd(), NoEnd()]), "two rewards have the name no_end"),
        (lambda: score_answers([Given([1])], [said()] * 2), r"given \(Given.score\) gave 1 scores for 2 answers"),
        (lambda: score_answers([Given(["good"])], [said()]), "must give numbers or None"),
        (lambda: built({"class_path": "NoEnds"}), "there is no class 'NoEnds'. Did you mean 'NoEnd'"),
        (
            lambda: built({"class_path": "Pattern", "init_args": {"expression": "["}}),
            "which is not a regular expression",
        ),
    ],
)
def test_a_mistake_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        make()
    assert "\n" not in str(refused.value)
