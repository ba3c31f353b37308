"""Callbacks, loggers and bars of others work beside ours or instead of them, or one line says why not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_sft.__main__ import main

pytestmark = pytest.mark.slow  # as a whole

WriteConfig = Callable[..., str]


def callback(name: str, **options: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": options}


@pytest.fixture
def said(write_config: WriteConfig, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line with which a fit is refused."""

    def line(**trainer: Any) -> str:
        assert main(["fit", "--config", write_config(trainer=trainer)]) == 2
        return next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))

    return line


def test_a_metric_that_there_is_not_is_refused_with_those_there_are(said: Callable[..., str]) -> None:
    line = said(callbacks=[callback("EarlyStopping", monitor="val_loss")])
    assert "EarlyStopping: there is no metric 'val_loss'. Did you mean 'val/loss'? Accepted: " in line
    assert "train/loss" in line


@pytest.mark.parametrize("metric", ["val/loss/Belle", "train/loss/Belle-2"])
def test_a_metric_of_one_corpus_is_there_only_among_several(said: Callable[..., str], metric: str) -> None:
    assert f"there is no metric '{metric}'" in said(callbacks=[callback("EarlyStopping", monitor=metric)])


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("EarlyStopping", {"monitor": "val/loss", "mode": "mn"}, "EarlyStopping: `mode` can be min, max, got mn"),
        (
            "BackboneFinetuning",
            {},
            "trainer.callbacks: BackboneFinetuning failed with AttributeError: 'SFT' object has",
        ),
    ],
)
def test_what_a_callback_of_lightning_raises_is_one_line(
    said: Callable[..., str], name: str, options: dict[str, Any], line: str
) -> None:
    assert line in said(callbacks=[callback(name, **options)])


def test_what_a_logger_raises_is_one_line(said: Callable[..., str], tmp_path: Path) -> None:
    line = said(logger=[callback("fakes.FailingLogger", save_dir=str(tmp_path))])
    assert "trainer.logger: FailingLogger failed with ConnectionError: no route to host" in line


def test_a_class_that_nobody_knows_is_asked_for_by_its_path(said: Callable[..., str]) -> None:
    assert "trainer.plugins: there is no class 'x'. Give its full path" in said(plugins="x")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named_with_the_remedy(said: Callable[..., str]) -> None:
    assert "trainer.accelerator: torch finds no such device. Set it to auto or cpu" in said(accelerator="gpu")


def test_a_callback_with_an_option_of_its_own_kind_is_recorded(write_config: WriteConfig, tmp_path: Path) -> None:
    timer = callback("Timer", duration="00:01:00:00")
    assert main(["fit", "--config", write_config(trainer={"callbacks": [timer], "max_steps": 1})]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert "interval: step" in (run / "config.yaml").read_text(encoding="utf-8")


def test_a_search_for_a_learning_rate_is_refused_for_the_schedule_sets_it(said: Callable[..., str]) -> None:
    assert "LearningRateFinder cannot work: model.schedule sets" in said(callbacks=[callback("LearningRateFinder")])


def test_two_callbacks_that_cannot_be_told_apart_are_refused(said: Callable[..., str]) -> None:
    twice = [callback("EarlyStopping", monitor="val/loss")] * 2
    assert "trainer.callbacks: Found more than one stateful callback" in said(callbacks=twice)


@pytest.mark.parametrize(
    ("logger", "package"), [("WandbLogger", "wandb"), ("MLFlowLogger", "mlflow"), ("CometLogger", "comet-ml"),
                            ("swanlab.integration.pytorch_lightning.SwanLabLogger", "swanlab")],
)  # fmt: skip
def test_a_package_that_is_not_there_is_named(said: Callable[..., str], logger: str, package: str) -> None:
    line = said(logger=callback(logger))
    assert line.endswith(f"not installed: pip install {package}")


@pytest.mark.parametrize(("key", "name", "near"), [("callbacks", "EarlyStoping", "EarlyStopping"),
                                                   ("logger", "CSVLoger", "CSVLogger")])  # fmt: skip
def test_a_misspelt_name_of_lightning_is_put_right(said: Callable[..., str], key: str, name: str, near: str) -> None:
    assert f"there is no class '{name}'. Did you mean '{near}'?" in said(**{key: [callback(name)]})


@pytest.mark.parametrize("is_enabled", [True, False])
def test_a_bar_of_ones_own_stands_in_place_of_ours(write_config: WriteConfig, is_enabled: bool) -> None:
    trainer = {"callbacks": [callback("TQDMProgressBar")], "enable_progress_bar": is_enabled, "max_steps": 1}
    assert main(["fit", "--config", write_config(trainer=trainer)]) == 0


def test_what_the_schedule_overrides_is_said_and_other_loggers_write(
    write_config: WriteConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = {
        "callbacks": [callback("StochasticWeightAveraging", swa_lrs=0.01)],
        "logger": [callback("CSVLogger", save_dir=str(tmp_path / "csv"))],
        "max_epochs": 1,
    }
    assert main(["fit", "--config", write_config(trainer=trainer)]) == 0
    # Before the run and at its end, where it is read.
    assert caplog.text.count("swa_lrs has no effect, for model.schedule sets the learning rate") == 2
    assert list((tmp_path / "csv").rglob("metrics.csv"))
