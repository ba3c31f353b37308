"""The summary shows what the stage of a run has measured, and nothing that it has not."""

from pathlib import Path
from typing import Any

from lit_sft.runs.summary import render


def shown(before: dict[str, float], after: dict[str, float]) -> list[list[str]]:
    content: dict[str, Any] = {
        "optimizer_steps": 9,
        "before": before,
        "before_step": 0,
        "after": after,
        "after_step": 9,
    }
    lines = render(Path("runs/one"), {**content, "samples": []}).splitlines()
    first = next(number for number, line in enumerate(lines) if "held out" in line)
    return [line.rsplit(maxsplit=2) for line in lines[first + 1 : lines.index("", first)]]


def test_supervised_fine_tuning_shows_loss_perplexity_and_token_accuracy() -> None:
    after = {"val/loss": 0.5, "val/perplexity": 1.649, "val/token_accuracy": 0.9, "val/loss/Belle": 0.5}
    assert shown({"val/loss": 7.0}, after) == [
        ["  loss", "7", "0.5"],
        ["  perplexity", "-", "1.649"],
        ["  token accuracy", "-", "0.9"],
    ]


def test_a_reward_model_shows_its_accuracy_beside_that_of_length_alone() -> None:
    after = {"val/loss": 0.1, "val/accuracy": 0.95, "val/accuracy_of_longer_wins": 0.5, "val/margin": 3.0}
    assert shown({}, after) == [
        ["  loss", "-", "0.1"],
        ["  accuracy", "-", "0.95"],
        ["  if longer wins", "-", "0.5"],
        ["  margin", "-", "3"],
    ]


def test_preference_optimization_shows_rewards_and_log_probabilities_of_both_sides() -> None:
    after = {
        **{f"val/rewards/{name}": value for name, value in (("chosen", 0.5), ("rejected", -1.0), ("margins", 1.5))},
        "val/logps/chosen": -20.0,
        "val/logps/rejected": -30.0,
    }
    assert [line[0].strip() for line in shown({}, after)] == [
        "reward margin",
        "reward, chosen",
        "reward, rejected",
        "log p, chosen",
        "log p, rejected",
    ]
