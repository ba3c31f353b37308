"""What the other verbs do with runs on answers that are compared."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from preference_configs import preference_config, reward_run

from lit_sft.__main__ import main

pytestmark = pytest.mark.slow  # as a whole

WriteConfig = Callable[..., str]


def test_a_reward_model_is_not_chatted_with_and_not_merged(
    write_config: WriteConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tiny_folder: Path,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    run = reward_run(write_config, trainer={"max_steps": 1})
    adapter = ["--checkpoint", str(tiny_folder), "--adapter", str(run / "adapter")]
    for words in (["chat", "--run", str(run)], ["chat", *adapter], ["merge", "--run", str(run), "--output", "out"]):
        assert main(words) == 2
        assert "is a reward model, which scores answers and writes none: " in capsys.readouterr().err
    names = ["merge", "--run", str(run), "--output", str(tmp_path / "out"), "--original_names", "true"]
    assert main(names) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "stage",
    [
        {"class_path": "Reward"},
        {"class_path": "Preference", "init_args": {"objective": {"class_path": "DPO"}}},
    ],
    ids=lambda stage: str(stage["class_path"]),
)
def test_check_tries_every_part_of_a_run_on_pairs(
    stage: dict[str, object], write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--config", preference_config(write_config, stage)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = {line[0]: line[1] for line in lines if line}
    for part in ("memory", "data", "train", "validate", "save", "resume", "predict"):
        assert found[part] == "OK"
