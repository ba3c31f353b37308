"""What is shown of runs on answers that are compared: their own metrics, and pairs as text."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from preference_configs import preference_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from lit_sft.__main__ import main
from lit_sft.runs.summary import render

SHOWN = {
    "Reward": ["loss", "accuracy", "margin", "mean_reward"],
    "Preference": [
        "loss",
        *(f"rewards/{name}" for name in ("accuracies", "margins", "chosen", "rejected")),
        "logps/chosen",
        "logps/rejected",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "judgment"),
    [
        ({"class_path": "Reward"}, "score"),
        ({"class_path": "Preference", "init_args": {"objective": {"class_path": "DPO"}}}, "log-ratio"),
    ],
    ids=["reward", "preference"],
)
def test_metrics_and_pairs_stand_before_and_after_in_summary_terminal_and_tensorboard(
    write_config: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    stage: dict[str, Any], judgment: str,
) -> None:  # fmt: skip
    assert main(["fit", "--config", preference_config(write_config, stage, trainer={"max_epochs": 1})]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["metrics"]) == [f"val/{name}" for name in SHOWN[stage["class_path"]]]
    assert summary["metrics"].keys() <= summary["before"].keys() & summary["after"].keys()
    assert len(summary["pairs"]) == 2
    for pair in summary["pairs"]:
        assert pair["judgment"] == judgment
        assert pair["chosen"].startswith("please")
        assert pair["after"][0] - pair["after"][1] > pair["before"][0] - pair["before"][1]
        if judgment == "log-ratio":
            assert pair["before"] == pytest.approx([0.0, 0.0], abs=1e-4)

    assert main(["summary", "--run", str(run)]) == 0
    said = capsys.readouterr().out
    assert "accuracy" in said
    assert said.count(judgment) == 4

    events = EventAccumulator(str(run), size_guidance={"tensors": 0})
    events.Reload()
    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("pairs/text_summary")]
    assert len(texts) == 2  # before, and after the epoch
    head, _, *lines = texts[-1].split("\n")
    assert head == "| prompt | chosen | rejected |"
    assert len(lines) == 2
    number = rf"<br>{judgment} \S+ → \S+"
    assert all(re.fullmatch(rf"\| .* \| please.*{number} \| .*{number} \|", line) for line in lines)
    content = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    named = {info.name.tag for info in plugin_data_pb2.HParamsPluginData.FromString(content).experiment.metric_infos}
    assert {f"{part}/{name}" for name in SHOWN[stage["class_path"]] for part in ("val", "val_before")} == named
    assert named <= set(events.Tags()["scalars"])


def test_a_summary_of_an_earlier_version_is_shown(tmp_path: Path) -> None:
    content = {
        "optimizer_steps": 3,
        "before": {"val/loss": 2.0},
        "after": {"val/loss": 1.0},
        "before_step": 0,
        "after_step": 3,
        "samples": [],
    }
    assert "loss                       2           1" in render(tmp_path, content)
