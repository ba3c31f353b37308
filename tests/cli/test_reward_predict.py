"""`predict` under a run of a reward model: scores of the answers that there are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from preference_configs import RECORDS, preference_config, reward_run

from lit_sft.__main__ import main
from lit_sft.conversation import Message
from lit_sft.rewards._base import Answered
from lit_sft.rewards.trained import Trained

pytestmark = pytest.mark.slow  # as a whole

WriteConfig = Callable[..., str]


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_every_answer_of_what_is_held_out_is_scored_and_an_interrupted_predict_goes_on(
    write_config: WriteConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = reward_run(write_config, trainer={"max_epochs": 1})
    words = ["predict", "--run", str(run), "--predictions.token_budget", "20"]
    assert main([*words, "--trainer.limit_predict_batches", "2"]) == 0
    assert not (run / "predictions.jsonl").exists()
    caplog.clear()
    assert main([*words, "--trainer.enable_progress_bar", "true"]) == 0
    assert "going on: " in caplog.text
    rows = rows_of(run / "predictions.jsonl")
    assert f"mean score {sum(row['score'] for row in rows) / len(rows):.4g}" in caplog.text

    answers_of = {record["prompt"]: list(record["answers"]) for record in RECORDS}
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    assert len(prompts) == 5
    assert [row["answer"] for row in rows] == [answer for prompt in prompts for answer in answers_of[prompt]]
    assert all(row.keys() == {"source", "category", "prompt", "answer", "score", "tokens"} for row in rows)
    about = json.loads((run / "adapter" / "reward.json").read_text(encoding="utf-8"))
    assert sum(row["score"] for row in rows) / len(rows) == pytest.approx(about["mean"], abs=1e-4)

    file = tmp_path / "answers.jsonl"
    talk = [("user", "question 1"), ("assistant", "please 1"), ("user", "and now?"), ("assistant", "go away")]
    records = [
        {"prompt": "question 1", "answer": "please 1", "category": "polite"},
        {"messages": [{"role": role, "content": text} for role, text in talk]},
        {"prompt": "question 1", "reference": "long " * 200},
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    asked = ["--data.init_args.prompts", str(file), "--predictions.path", str(tmp_path / "scores.jsonl")]
    assert main(["predict", "--run", str(run), *asked]) == 0
    first, second, third = rows_of(tmp_path / "scores.jsonl")
    assert (first["category"], first["answer"], second["answer"]) == ("polite", "please 1", "go away")
    assert (third["score"], third["tokens"]) == (None, 0)
    assert "1 have none: not finite, too long" in caplog.text
    (known,) = Trained(str(run)).score([Answered([Message("user", "question 1")], "please 1")])
    assert first["score"] == pytest.approx(known * about["std"] + about["mean"], abs=1e-4)

    file.write_text('{"prompt": "question 1"}\n', encoding="utf-8")
    assert main(["predict", "--run", str(run), *asked]) == 2


def test_a_head_that_has_learned_nothing_scores_nothing(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = preference_config(write_config, {"class_path": "Reward"})
    assert main(["predict", "--config", config, "--predictions.path", str(tmp_path / "scores.jsonl")]) == 2
    assert "a reward model that was not trained scores by chance" in capsys.readouterr().err
    assert not list(tmp_path.glob("scores*"))
