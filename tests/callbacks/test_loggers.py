"""Curves, samples and settings go to the loggers of others, beside TensorBoard."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from fakes import SwanLabLogger
from lightning.pytorch.loggers import WandbLogger

from lit_sft.__main__ import main
from lit_sft.callbacks._loggers import log_table
from lit_sft.callbacks.samples import _listed

WriteConfig = Callable[..., str]


class Wandb(WandbLogger):
    """Keeps what it is given; the package is not needed."""

    def __init__(self) -> None:
        self.tables: list[Any] = []

    def log_table(
        self, key: str, columns: Any = None, data: Any = None, dataframe: Any = None, step: Any = None
    ) -> None:
        self.tables.append((key, columns, data, step))


def test_a_table_is_one_in_wandb_and_a_text_for_each_row_in_swanlab(tmp_path: Path) -> None:
    wandb, swanlab = Wandb(), SwanLabLogger("lit_sft", "offline", str(tmp_path))
    trainer: Any = SimpleNamespace(global_step=7, loggers=[wandb, swanlab])
    log_table(trainer, "samples", ("prompt", "after"), [("你好", "**您好**"), ("再见", "再会")])
    assert wandb.tables == [("samples", ["prompt", "after"], [["你好", "**您好**"], ["再见", "再会"]], 7)]
    assert swanlab.texts == [("samples", ["prompt:\n你好\n\nafter:\n**您好**", "prompt:\n再见\n\nafter:\n再会"], 7)]


@pytest.mark.slow
def test_a_logger_of_a_configuration_stands_beside_tensorboard(
    write_config: WriteConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path / "csv")}}
    assert main(["fit", "--config", write_config(trainer={"logger": [logger], "max_steps": 1})]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert f"run folder {run}. Curves: " in caplog.text
    assert f"fit --resume {run}" in caplog.text
    assert list(run.glob("events.out.tfevents.*"))
    (settings,) = (tmp_path / "csv").rglob("hparams.yaml")
    assert yaml.safe_load(settings.read_text(encoding="utf-8"))["tuning"] == "LoRA"


@pytest.mark.slow
def test_a_run_is_asked_where_the_package_of_its_logger_is_not_installed(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", write_config(trainer={"max_steps": 1})]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    settings["trainer"]["logger"] = [{"class_path": "no_such_package.Logger", "init_args": {"project": "p"}}]
    (run / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert main(["validate", "--run", str(run)]) == 0
    assert main(["fit", "--resume", str(run)]) == 2
    assert "pip install no_such_package" in capsys.readouterr().err


@pytest.mark.slow
def test_a_tensorboard_logger_of_ones_own_stands_in_place_of_ours_and_false_for_none(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(tmp_path / "curves")}}
    for given in (logger, False):
        assert main(["fit", "--config", write_config(trainer={"logger": given, "max_steps": 1})]) == 0
    assert [run for run in (tmp_path / "runs").iterdir() if list(run.glob("events.*"))] == []
    assert len(list((tmp_path / "curves").rglob("events.*"))) == 1


def test_a_sample_has_its_reward_and_the_parts_of_it_in_one_cell() -> None:
    assert _listed({"reward": 1.8125, "trained": 1.85, "no_end": -0.0375}) == "1.81\ntrained 1.85\nno_end -0.0375"
    assert _listed({"reward": None, "matches": None}) == "none\nmatches none"
