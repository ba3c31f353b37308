"""A run on answers that are compared: the verbs know them as they know conversations."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import dict_to_namespace
from rankings import judged, ranked, written

from lit_sft.__main__ import main
from lit_sft.checkpoint.opening import open_checkpoint
from lit_sft.configuration import build
from lit_sft.preflight.memory import estimate
from lit_sft.preflight.network import measure_network
from lit_sft.preflight.plan import plan_of, remedies
from lit_sft.tuning._base import Tuning
from lit_sft.tuning.lora import LoRA

RECORDS = [
    *(ranked(f"{a}加{b}等于几？", f"{a}加{b}等于{a + b}。", "不知道。") for a in range(1, 5) for b in range(1, 5)),
    *(ranked(f"{a}加1等于几？", f"等于{a + 1}。", "很多。", "不知道。") for a in range(1, 5)),
    *(judged(f"{a}减1等于几？", f"等于{a - 1}。", good=True) for a in range(1, 5)),
]


@pytest.fixture
def config(write_config: Callable[..., str], tmp_path: Path) -> str:
    """A stage that trains on all there is, with accumulation."""
    corpus = written(tmp_path / "pairs.jsonl", RECORDS)
    trainer = {"accumulate_grad_batches": 2, "max_epochs": 1, "num_sanity_val_steps": 0}
    file = Path(write_config(trainer=trainer, samples={"count": 0}))
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content["model"]["class_path"], content["data"]["class_path"] = "second.ByExample", "PreferenceData"
    content["data"]["init_args"]["corpora"] = [{"class_path": "rankings.Rankings", "init_args": {"path": corpus.path}}]
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return str(file)


def run_named(tmp_path: Path, name: str) -> Path:
    (run,) = (tmp_path / "runs").glob(f"{name}-*")
    return run


def stored(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_run_that_is_interrupted_in_an_epoch_ends_with_the_same_weights_and_answers_each_prompt_once(
    config: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        assert main(["fit", "--config", config, "--name", "whole"]) == 0
    assert "the longer answer is the better one in" in caplog.text
    ask = json.dumps([{"class_path": "fakes.Ask", "init_args": {"step": 2}}])
    half_options = ["fit", "--config", config, "--name", "half", "--resume", "auto"]
    assert main([*half_options, "--trainer.callbacks", ask]) == 128 + signal.SIGTERM
    assert stored(run_named(tmp_path, "half"))["PreferenceData"]["num_batches"] > 0
    assert main(half_options) == 0
    whole, half = run_named(tmp_path, "whole"), run_named(tmp_path, "half")
    expected, resumed = stored(whole)["state_dict"], stored(half)["state_dict"]
    assert all(torch.equal(weight, resumed[name]) for name, weight in expected.items())

    assert main(["predict", "--run", str(half)]) == 0
    rows = [json.loads(line) for line in (half / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    prompts = [row["prompt"] for row in rows]
    assert len(prompts) == len({*prompts}) == 4
    assert all(row["reference"].endswith("。") for row in rows)

    assert main(["compare", "--run", str(half)]) == 0
    measured = json.loads((half / "comparison" / "metrics.json").read_text(encoding="utf-8"))
    assert measured["forgetting"]["Rankings"]["num_prompts"] == 5  # records, each with its best answer


def test_tuning_on_conversations_refuses_answers_that_are_rejected(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    content["model"]["class_path"] = "SFT"
    Path(config).write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    assert main(["fit", "--config", config]) == 2
    assert "SFT would learn the rejected answers of PreferenceData" in capsys.readouterr().err


def test_a_row_is_reckoned_as_two_answers(tiny_folder: Path, config: str) -> None:
    content = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    tuning = build("tuning", Tuning, content["model"]["init_args"]["tuning"])
    family = open_checkpoint(tiny_folder).family
    content["trainer"] |= {"strategy": "auto", "precision": "32-true"}
    content["model"]["init_args"]["gradient_checkpointing"] = False
    pairs = plan_of(dict_to_namespace(content), tuning, family, 1, is_gpu=False)
    content["data"]["class_path"] = "lit_sft.data.sft.SFTData"
    alone = plan_of(dict_to_namespace(content), tuning, family, 1, is_gpu=False)
    assert (pairs.row_length, alone.row_length) == (256, 128)
    size = measure_network(family)
    for plan in (pairs, alone):
        least = estimate(size, replace(plan, row_length=plan.row_length // 2)).total
        assert "data.init_args.max_length: 64" in remedies(size, plan, family.lora_targets, least)


def test_memory_is_reckoned_by_what_a_stage_makes_of_hidden_states(config: str, tiny_folder: Path) -> None:
    """Rows of log-probabilities, no vocabulary for a score, and the reference of DPO after SFT."""
    content = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    family = open_checkpoint(tiny_folder).family
    content["trainer"] |= {"strategy": "auto", "precision": "32-true"}
    content["model"]["init_args"] |= {"gradient_checkpointing": False, "objective": {"class_path": "DPO"}}
    size, tuning = measure_network(family), LoRA(rank=2)
    found = {}
    for stage in ("SFT", "Reward", "Preference"):
        content["model"]["class_path"] = stage
        found[stage] = estimate(size, plan_of(dict_to_namespace(content), tuning, family, 1, is_gpu=False))
    assert found["Reward"].logits == 0 < found["SFT"].logits == found["Preference"].logits
    rows = content["data"]["init_args"]["micro_batch_size"] * 256 * size.hidden_size * 4
    assert found["Preference"].activations - found["SFT"].activations == rows
    tuning.adapter = "runs/sft/adapter"
    after_sft = estimate(size, plan_of(dict_to_namespace(content), tuning, family, 1, is_gpu=False))
    assert after_sft.weights > found["Preference"].weights
    content["model"]["init_args"]["objective"]["class_path"] = "SimPO"
    without = estimate(size, plan_of(dict_to_namespace(content), tuning, family, 1, is_gpu=False))
    assert without.weights == found["Preference"].weights
