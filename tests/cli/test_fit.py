"""From a configuration to a run folder and answers, as a user does it."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_sft import open_checkpoint
from lit_sft.__main__ import main
from lit_sft.distributed.processes import LAUNCHED

pytestmark = pytest.mark.slow  # as a whole

WriteConfig = Callable[..., str]


def only_run(tmp_path: Path) -> Path:
    (run,) = (tmp_path / "runs").iterdir()
    return run


def curves(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run))
    events.Reload()
    return events


def loss_curve(run: Path) -> list[float]:
    return [event.value for event in curves(run).Scalars("train/loss")]


def test_a_run_learns_and_leaves_a_folder_one_understands_later(finished_run: Path, tiny_folder: Path) -> None:
    run = finished_run
    assert run.name.startswith("first-")

    losses = loss_curve(run)
    assert losses[-1] < losses[0]
    tags = curves(run).Tags()
    assert {
        *("train/loss", "train/perplexity", "train/token_accuracy", "train/learning_rate", "train/gradient_norm"),
        *("val/loss", "val/perplexity", "val/token_accuracy"),
        *("speed/tokens_per_second", "speed/supervised_tokens_per_second", "speed/padding_share", "speed/memory_gib"),
    } <= set(tags["scalars"])
    assert any("samples" in tag for tag in tags["tensors"])

    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["seed"] == 7
    assert manifest["family"] == "baichuan-7b"
    assert manifest["versions"]["torch"] == torch.__version__
    assert len(manifest["sha256"]["tokenizer"][str(tiny_folder / "tokenizer.model")]) == 64
    assert len(manifest["sha256"]["data"][str(run.parents[1] / "belle.json")]) == 64
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["tuning"]["init_args"]["rank"] == 4
    assert json.loads((run / "quarantine.jsonl").read_text())["counts"]["skipped"] == {}

    summary = json.loads((run / "summary.json").read_text())
    assert summary["after"]["val/loss"] < summary["before"]["val/loss"]
    assert len(summary["samples"]) == 2

    stored = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert stored
    assert all("lora_" in name for name in stored)


def test_the_adapter_opens_with_plain_peft_on_the_loaded_base(finished_run: Path, tiny_folder: Path) -> None:
    adapted = PeftModel.from_pretrained(open_checkpoint(tiny_folder).load_model(), finished_run / "adapter")
    stored = torch.load(finished_run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    weights = {f"model.{name}": weight for name, weight in adapted.state_dict().items() if "lora_" in name}
    assert weights.keys() == stored.keys()
    assert all(torch.equal(weights[name], stored[name]) for name in stored)
    assert any(weight.abs().max() > 0 for name, weight in stored.items() if "lora_B" in name)


def test_full_tuning_exports_a_checkpoint_in_the_original_layout(write_config: WriteConfig, tmp_path: Path) -> None:
    assert (
        main(["fit", "--config", write_config(model={"tuning": {"class_path": "Full"}}, trainer={"max_epochs": 4})])
        == 0
    )
    run = only_run(tmp_path)
    losses = loss_curve(run)
    assert losses[-1] < 0.7 * losses[0]
    checkpoint = open_checkpoint(run / "model")
    assert checkpoint.load_tokenizer().encode_text("你好")
    stored = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, weight in checkpoint.load_model().state_dict().items():
        assert torch.equal(weight, stored[f"model.{name}"]), name


def test_the_same_seed_gives_the_same_curve_and_another_seed_another(write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config(trainer={"max_steps": 4, "limit_val_batches": 0}, samples={"count": 0})
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        assert main(["fit", "--config", config, "--name", name, "--seed_everything", str(seed)]) == 0
    a, b, c = (loss_curve(run) for run in sorted((tmp_path / "runs").iterdir()))
    assert a == b
    assert a != c


def test_predict_takes_the_newest_run_and_its_held_out_prompts(
    finished_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older, run = (
        Path(shutil.copytree(finished_run, tmp_path / "runs" / f"{name}-20260101-00000{second}"))
        for second, name in enumerate(("b", "a"))
    )
    os.utime(older / "config.yaml", (1, 1))
    assert main(["predict", "--runs", str(tmp_path / "runs")]) == 0
    assert f"taking the newest run, {run}" in caplog.text
    assert not (older / "predictions.jsonl").exists()
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    for row in rows:
        assert row.keys() == {
            *("source", "category", "strategy", "prompt", "is_truncated", "answer", "reference"),
            *("finish_reason", "prompt_tokens", "answer_tokens"),
        }
        assert "等于" in row["reference"]
        assert row["finish_reason"] in {"stop", "length"}
        assert 0 < row["answer_tokens"] <= 8


def test_predict_answers_a_file_with_the_base_and_with_the_adapter(
    write_config: WriteConfig, tmp_path: Path, finished_run: Path
) -> None:
    run = finished_run
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("1加1等于几？\n你好\n", encoding="utf-8")
    answers = {}
    for name, options in {
        "run": ["--run", str(run)],
        "base": ["--run", str(run), "--base", "true"],
        "adapter": [
            "--config",
            write_config(model={"tuning": {"class_path": "LoRA", "init_args": {"adapter": str(run / "adapter")}}}),
        ],
    }.items():
        output = tmp_path / f"{name}.jsonl"
        options += ["--data.init_args.prompts", str(prompts), "--predictions.path", str(output)]
        assert main(["predict", *options]) == 0
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        assert [row["prompt"] for row in rows] == ["1加1等于几？", "你好"]
        assert [row["reference"] for row in rows] == [None, None]
        answers[name] = [row["answer"] for row in rows]
    assert answers["run"] == answers["adapter"]
    assert answers["run"] != answers["base"]


def generation(*strategies: dict[str, Any]) -> dict[str, Any]:
    kinds = [{"class_path": kind, "init_args": options} for each in strategies for kind, options in each.items()]
    return {"generation": kinds}


def test_predict_answers_each_prompt_in_every_way(write_config: WriteConfig, tmp_path: Path) -> None:
    prompts, output = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    prompts.write_text("1加1等于几？\n你好\n", encoding="utf-8")
    ways = generation({"Greedy": {"max_new_tokens": 4}}, {"TopP": {"temperature": 0.8, "max_new_tokens": 4}})
    options = ["--data.init_args.prompts", str(prompts), "--predictions.path", str(output)]
    assert main(["predict", "--config", write_config(model=ways), *options]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    names = ["greedy(max_new_tokens=4)", "top_p(top_p=0.9, max_new_tokens=4, temperature=0.8)"]
    assert [(row["prompt"], row["strategy"]) for row in rows] == [
        (p, n) for p in ("1加1等于几？", "你好") for n in names
    ]


@pytest.mark.parametrize(
    ("ways", "message"),
    [
        (generation({"Greedy": {}}, {"Greedy": {}}), "two strategies of the name greedy"),
        (generation({"Greedy": {}}, {"TopQ": {}}), "there is no class 'TopQ'"),
        (generation({"Greedy": {"temperature": 2.0}}), "option 'temperature' is not accepted"),
        (generation(), "an empty list"),
    ],
)
def test_ways_that_cannot_be_gone_are_refused_in_one_line(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str], ways: dict[str, Any], message: str
) -> None:
    assert main(["predict", "--config", write_config(model=ways)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_predict_without_a_run_says_what_to_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--runs", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "no run with a checkpoint" in error
    assert "--run DIR" in error


def test_validate_and_test_measure_a_run(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    after = json.loads((run / "summary.json").read_text())["after"]["val/loss"]
    capsys.readouterr()
    assert main(["validate", "--run", str(run)]) == 0
    assert re.search(rf"^loss +{after:.4g}$", capsys.readouterr().out, re.MULTILINE)
    assert json.loads((run / "validate.json").read_text())["metrics"]["val/loss"] == pytest.approx(after)
    assert main(["test", "--run", str(run), "--base", "true"]) == 0
    assert re.search(r"^perplexity +\d", capsys.readouterr().out, re.MULTILINE)
    assert json.loads((run / "test-base.json").read_text())["checkpoint"] is None


def test_training_goes_on_over_dirty_records_and_names_each(write_config: WriteConfig, tmp_path: Path) -> None:
    file = tmp_path / "belle.json"
    good = file.read_bytes().splitlines(keepends=True)
    long = b'{"instruction": "' + b"x" * (2 << 20) + b'", "input": "", "output": "a"}\n'
    dirt = [b'{"instruction": \n', b'{"instruction": "q", "input": "", "output": ""}\n', b"\n", long]
    file.write_bytes(b"\xef\xbb\xbf" + good[0] + good[1].replace(b"\n", b"\r\n") + b"".join(dirt) + b"".join(good[2:]))
    assert main(["fit", "--config", write_config(data={"max_bad_fraction": 0.2}, trainer={"max_steps": 2})]) == 0
    lines = [json.loads(line) for line in (only_run(tmp_path) / "quarantine.jsonl").read_text().splitlines()]
    assert {line["source"]: line["reason"] for line in lines[:-1]} == {
        f"{file}:1": "byte-order-mark",
        f"{file}:2": "crlf",
        f"{file}:3": "broken-json",
        f"{file}:4": "no-answer",
        f"{file}:5": "empty-line",
        f"{file}:6": "record-too-long",
    }


@pytest.mark.parametrize(("step", "num_workers", "packing"), [(3, 0, True), (4, 2, False), (9, 2, True)])
def test_an_interrupted_run_goes_on_with_the_batch_it_would_have_had(
    write_config: WriteConfig,
    tmp_path: Path,
    corpus_file: Path,
    capsys: pytest.CaptureFixture[str],
    step: int,
    num_workers: int,
    packing: bool,
) -> None:
    """Saved in the first epoch of some seven batches and in the second, of two corpora of which one counts more."""
    no_dropout = {"class_path": "LoRA", "init_args": {"rank": 4}}
    trainer = {"max_epochs": 2, "val_check_interval": step, "check_val_every_n_epoch": None, "limit_val_batches": 1}
    corpora = [
        {"class_path": "Belle", "init_args": {"path": str(corpus_file), "weight": 1.5}},
        {"class_path": "Belle", "init_args": {"path": str(corpus_file), "count": 5}},
    ]
    data = {"corpora": corpora, "num_workers": num_workers, "packing": packing}
    trained = {"model": {"tuning": no_dropout}, "data": data, "trainer": trainer}
    config = write_config(**trained, samples={"count": 0})
    assert main(["fit", "--config", config, "--name", "whole"]) == 0
    interrupt = json.dumps([{"class_path": "fakes.Interrupt", "init_args": {"step": step + 1}}])
    assert main(["fit", "--config", config, "--name", "half", "--trainer.callbacks", interrupt]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    runs = {run.name.split("-")[0]: run for run in (tmp_path / "runs").iterdir()}
    last = str(runs["half"] / "checkpoints" / "last.ckpt")
    assert main(["fit", "--config", config, "--name", "resumed", "--ckpt_path", last]) == 0
    resumed = next(run for run in (tmp_path / "runs").iterdir() if run.name.startswith("resumed"))
    assert loss_curve(runs["whole"])[step:] == loss_curve(resumed)


def test_the_last_checkpoint_is_the_end_of_the_run_wherever_it_ends(write_config: WriteConfig, tmp_path: Path) -> None:
    assert main(["fit", "--config", write_config(trainer={"max_steps": 3, "val_check_interval": 2})]) == 0
    run = only_run(tmp_path)
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    for name, weight in checkpoint["state_dict"].items():
        assert torch.equal(weight, adapter[name.removeprefix("model.").replace(".default", "")]), name


def test_repeating_a_run_from_its_configuration_keeps_its_name(write_config: WriteConfig, tmp_path: Path) -> None:
    assert main(["fit", "--config", write_config(trainer={"max_steps": 1}), "--name", "first"]) == 0
    assert main(["fit", "--config", str(only_run(tmp_path) / "config.yaml")]) == 0
    assert [run.name.split("-")[0] for run in (tmp_path / "runs").iterdir()] == ["first", "first"]


def test_a_fit_that_fails_before_it_began_leaves_nothing(write_config: WriteConfig, tmp_path: Path) -> None:
    assert main(["fit", "--config", write_config(data={"max_length": 3})]) == 2
    assert list((tmp_path / "runs").iterdir()) == []


def test_adapters_stay_in_float32_under_bf16_true_and_the_held_out_loss_is_exact(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    assert main(["fit", "--config", write_config(trainer={"precision": "bf16-true"})]) == 0
    run = only_run(tmp_path)
    stored = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {weight.dtype for weight in stored.values()} == {torch.float32}
    loss = json.loads((run / "summary.json").read_text())["after"]["val/loss"]
    assert loss != torch.tensor(loss).bfloat16().item()


def test_base_in_any_spelling_is_the_model_before_tuning(write_config: WriteConfig, tmp_path: Path) -> None:
    full = write_config(model={"tuning": {"class_path": "Full"}}, trainer={"max_steps": 4}, samples={"count": 0})
    assert main(["fit", "--config", full]) == 0
    run = only_run(tmp_path)
    assert main(["predict", "--run", str(run)]) == 0
    tuned = (run / "predictions.jsonl").read_text()
    for word in ("yes", "True"):
        assert main(["predict", "--run", str(run), "--base", word]) == 0
        assert (run / "predictions.jsonl").read_text() == tuned
        assert (run / "predictions-base.jsonl").read_text() != tuned
        (run / "predictions-base.jsonl").unlink()


def test_two_processes_that_the_trainer_starts_train_and_measure_as_one(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    """The same records in a step: two processes with two rows each, or one with four."""
    no_dropout = {"class_path": "LoRA", "init_args": {"rank": 4}}
    measured = {}
    for name, devices, rows in (("one", 1, 4), ("two", 2, 2)):
        config = write_config(
            model={"tuning": no_dropout},
            data={"micro_batch_size": rows, "packing": True, "validation_fraction": 0.15},
            trainer={"devices": devices, "strategy": "ddp" if devices > 1 else "auto", "max_steps": 1},
        )
        words = ["fit", "--config", config, "--name", name]
        if devices == 1:
            assert main(words) == 0
        else:
            command = [sys.executable, "-m", "lit_sft", *words]
            outside = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
            done = subprocess.run(command, capture_output=True, text=True, env={**outside, "OMP_NUM_THREADS": "1"})
            assert done.returncode == 0, done.stderr
        (run,) = (tmp_path / "runs").glob(f"{name}-*")
        summary = json.loads((run / "summary.json").read_text())
        measured[name] = [*summary["before"].values(), *loss_curve(run)]
    assert measured["two"] == pytest.approx(measured["one"], rel=1e-6)


def test_a_checkpoint_that_would_run_code_is_refused(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": {}, "x": Evil()}, tmp_path / "evil.ckpt")
    assert main(["validate", "--config", write_config(), "--ckpt_path", str(tmp_path / "evil.ckpt")]) == 2
    assert "would run code" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
