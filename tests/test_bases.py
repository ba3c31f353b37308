"""A further data module and stage are a class each: nothing else knows which they are."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from second import ByHand, Questions
from streams import Notes, batches_of, fit
from torch.optim import SGD

from lit_sft import open_checkpoint
from lit_sft.__main__ import main
from lit_sft.callbacks.checkpoints import Checkpoints
from lit_sft.corpora.belle import Belle
from lit_sft.data._base import CorpusData
from lit_sft.data.sft import SFTData
from lit_sft.stages._base import Stage
from lit_sft.stages.schedules import Constant
from lit_sft.stages.sft import SFT
from lit_sft.tuning.full import Full


@pytest.fixture
def config(write_config: Callable[..., str]) -> str:
    """Questions by ByExample, with dropout, accumulation and a validation within the epoch."""
    file = Path(write_config(trainer={"accumulate_grad_batches": 2, "val_check_interval": 2}))
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content["model"]["class_path"], content["data"]["class_path"] = "second.ByExample", "second.Questions"
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return str(file)


def run_named(tmp_path: Path, name: str) -> Path:
    (run,) = (tmp_path / "runs").glob(f"{name}-*")
    return run


def stored(run: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)  # type: ignore[no-any-return]


@pytest.mark.slow
def test_another_stage_on_other_data_trains_resumes_to_the_bit_and_answers(
    config: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["fit", "--config", config, "--name", "whole"]) == 0
    assert "the first batch is looked at" in caplog.text
    ask = json.dumps([{"class_path": "fakes.Ask", "init_args": {"step": 3}}])
    half_options = ["fit", "--config", config, "--name", "half", "--resume", "auto"]
    assert main([*half_options, "--trainer.callbacks", ask]) == 128 + signal.SIGTERM
    assert stored(run_named(tmp_path, "half"))["global_step"] == 3
    assert stored(run_named(tmp_path, "half"))["Questions"]["num_batches"] > 0
    assert main(half_options) == 0

    whole, half = run_named(tmp_path, "whole"), run_named(tmp_path, "half")
    expected, resumed = stored(whole)["state_dict"], stored(half)["state_dict"]
    assert all(torch.equal(weight, resumed[name]) for name, weight in expected.items())
    summaries = [json.loads((run / "summary.json").read_text(encoding="utf-8")) for run in (whole, half)]
    assert summaries[0] == summaries[1]
    assert summaries[0]["after"].keys() == {"val/loss", "val/num_right"}
    assert summaries[0]["after"]["val/loss"] < summaries[0]["before"]["val/loss"]
    assert len(summaries[0]["samples"]) == 2

    assert main(["predict", "--run", str(half)]) == 0
    rows = [json.loads(line) for line in (half / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 4
    assert all(row["answer_tokens"] > 0 for row in rows)


def test_what_an_encoding_does_not_say_is_not_shown(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preview", "--config", config]) == 0
    shown = capsys.readouterr().out
    assert "Tokens, of 128 at most" in shown
    assert "loss on" not in shown


def test_two_kinds_of_data_do_not_share_their_tokens(tiny_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    stage = SFT(str(tiny_folder), Full())

    def supervised(kind: type[CorpusData]) -> int:
        data = kind(stage.checkpoint, [Belle(str(corpus_file))], max_length=128, cache=str(tmp_path / "cache"))
        data.setup("fit")
        return sum(batch.num_supervised for batch in data.train_dataloader())

    assert supervised(SFTData) != supervised(Questions)


def test_a_stage_that_steps_by_itself_trains_on_the_mean_too(tiny_folder: Path) -> None:
    """Sums that nobody divides would be steps some ten times as large."""

    def trained(kind: type[Stage]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        torch.manual_seed(0)
        stage = kind(str(tiny_folder), Full(), optimizer=lambda groups: SGD(groups, lr=0.1), schedule=Constant())
        notes = Notes()
        fit(stage, torch.utils.data.DataLoader(batches_of(3), batch_size=None), logger=notes, max_epochs=1)  # type: ignore[arg-type]
        return dict(stage.named_parameters()), notes.found

    (expected, curves), (by_hand, curves_by_hand) = trained(SFT), trained(ByHand)
    assert all(torch.equal(weight, by_hand[name]) for name, weight in expected.items())
    assert curves["train/loss"] == curves_by_hand["train/loss"]
    assert curves["train/gradient_norm"] == curves_by_hand["train/gradient_norm"]


def test_a_step_follows_the_gradient_of_the_mean_over_its_supervised_tokens(tiny_folder: Path) -> None:
    batches = batches_of(3)
    network = open_checkpoint(tiny_folder).load_model()
    losses = [network(input_ids=batch.input_ids, labels=batch.labels).loss * batch.num_supervised for batch in batches]
    (torch.stack(losses).sum() / sum(batch.num_supervised for batch in batches)).backward()
    stage = SFT(str(tiny_folder), Full(), optimizer=lambda groups: SGD(groups, lr=0.1), schedule=Constant(0.0))
    loader: Any = torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    fit(stage, loader, max_epochs=1, accumulate_grad_batches=3)
    trained = dict(stage.causal_lm.named_parameters())
    for name, weight in network.named_parameters():
        assert weight.grad is not None
        torch.testing.assert_close(trained[name], weight - 0.1 * weight.grad, atol=1e-6, rtol=1e-5, msg=name)


def test_the_mean_does_not_hang_on_a_hook_that_stages_override(tiny_folder: Path) -> None:
    class OwnClipping(SFT):
        def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
            """Clips nothing."""

    def trained(kind: type[SFT]) -> dict[str, torch.Tensor]:
        stage = kind(str(tiny_folder), Full(), optimizer=lambda groups: SGD(groups, lr=0.1), schedule=Constant())
        fit(stage, torch.utils.data.DataLoader(batches_of(2), batch_size=None), max_epochs=1)  # type: ignore[arg-type]
        return dict(stage.named_parameters())

    expected, own = trained(SFT), trained(OwnClipping)
    assert all(torch.equal(weight, own[name]) for name, weight in expected.items())


@pytest.mark.parametrize("direction", ["min", "max"])
def test_best_is_what_the_stage_calls_best(direction: str) -> None:
    checkpoints, stage = Checkpoints(), SimpleNamespace(best_by=("val/x", direction))
    found = [
        checkpoints._is_best(SimpleNamespace(callback_metrics={"val/x": torch.tensor(value)}), stage)  # type: ignore[arg-type]
        for value in (2.0, 3.0, 1.0)
    ]
    assert found == {"min": [True, False, True], "max": [True, True, False]}[direction]
    assert not checkpoints._is_best(SimpleNamespace(callback_metrics={}), stage)  # type: ignore[arg-type]
