"""`predict --best_of N --reward RUN`: the answer that the reward model likes best."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from preference_configs import reward_run

from lit_sft.__main__ import main
from lit_sft.conversation import Message
from lit_sft.generation.strategies import Greedy, TopP
from lit_sft.rewards._base import Answered
from lit_sft.rewards.trained import Trained

pytestmark = pytest.mark.slow  # as a whole

WriteConfig = Callable[..., str]
NUM_ANSWERS = 3


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_other_draws_are_other_chances_and_the_first_is_the_strategy_itself() -> None:
    seeds = [TopP(seed=3).redrawn(number).seed for number in range(4)]
    assert seeds[0] == 3
    assert len({*seeds, *(TopP(seed=4).redrawn(number).seed for number in range(4))}) == 8
    assert TopP(seed=3).redrawn(2).parameters() | {"seed": 3} == TopP(seed=3).parameters()
    assert isinstance(Greedy().redrawn(2), Greedy)


def test_the_best_answer_is_written_whatever_the_batch_and_its_options_are_not_mixed(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = reward_run(write_config, trainer={"max_epochs": 1})
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"question {n}" + " more" * n for n in range(5)), encoding="utf-8")
    sampling = {"class_path": "TopP", "init_args": {"max_new_tokens": 5, "top_p": 1.0, "seed": 3, "name": "sampled"}}
    config = write_config(model={"generation": sampling}, data={"prompts": str(prompts)})
    words = ["predict", "--config", config, "--predictions.path"]
    best_of = ["--best_of", str(NUM_ANSWERS), "--reward", str(reward)]
    together, alone = (tmp_path / f"{name}.jsonl" for name in ("together", "alone"))
    assert main([*words, str(together), *best_of]) == 0
    rows = rows_of(together)
    assert all((row["best_of"], row["strategy"]) == (NUM_ANSWERS, "sampled") for row in rows)

    # Each draw by itself: they differ, and none of them has a higher score.
    scorer = Trained(str(reward))
    answers = []
    for number in range(NUM_ANSWERS):
        seed = TopP(seed=3).redrawn(number).seed
        drawn = {**sampling, "init_args": {**sampling["init_args"], "seed": seed}}  # type: ignore[dict-item]
        file = tmp_path / f"draw-{number}.jsonl"
        assert main([*words, str(file), "--model.init_args.generation", json.dumps(drawn)]) == 0
        answers.append([row["answer"] for row in rows_of(file)])
    for row, drawn_answers in zip(rows, zip(*answers, strict=True), strict=True):
        assert len({*drawn_answers}) > 1
        scores = scorer.score([Answered([Message("user", row["prompt"])], answer) for answer in drawn_answers])
        assert row["score"] == pytest.approx(max(score for score in scores if score is not None), abs=1e-4)
        assert row["answer"] in drawn_answers

    # One prompt at a time; what was interrupted goes on with the same choice only.
    again = [*words, str(alone), "--predictions.token_budget", "1"]
    assert main([*again, *best_of, "--trainer.limit_predict_batches", "2"]) == 0
    assert main(again) == 2
    assert "answered with other best_of, reward. " in capsys.readouterr().err
    assert main([*again, *best_of]) == 0
    assert [row["answer"] for row in rows_of(alone)] == [row["answer"] for row in rows]
    assert [row["score"] for row in rows_of(alone)] == pytest.approx([row["score"] for row in rows], abs=1e-4)


def test_options_that_do_not_go_together_are_one_line(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config()

    def said(*options: str) -> str:
        assert main(["predict", "--config", config, "--runs", str(tmp_path / "a"), *options]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "--best_of needs a reward model that chooses" in said("--best_of", "4")
    assert "give their number with --best_of" in said("--reward", "x")
    assert "--best_of is 1; it must be at least 2" in said("--best_of", "1", "--reward", "x")
    greedy = said("--best_of", "4", "--reward", "x")
    assert "gives the same answer every time. Set model.init_args.generation to one that samples" in greedy
    sampling = ["--model.init_args.generation", '{"class_path": "TopP"}']
    assert "holds no reward model" in said("--best_of", "4", "--reward", str(tmp_path), *sampling)
    assert not (tmp_path / "a").exists()
