"""The report of a comparison in the loggers with which its run was followed."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import pytest
import yaml

from lit_sft.report.bootstrap import Difference
from lit_sft.report.comparison import ALL, Measured
from lit_sft.report.metrics import METRICS
from lit_sft.report.tracking import send_report


class Wandb(ModuleType):
    """Keeps what a run is given."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.options: dict[str, Any] = {}
        self.logged: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}

    def init(self, **options: Any) -> Self:
        self.options = options
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def log(self, content: dict[str, Any]) -> None:
        self.logged |= content

    def Html(self, text: str, *, inject: bool) -> str:  # noqa: N802
        assert not inject
        return f"html: {text}"


class SwanLab(ModuleType):
    """Its run is the module."""

    def __init__(self, *, is_reachable: bool = True) -> None:
        super().__init__("swanlab")
        self.is_reachable = is_reachable
        self.logged: dict[str, Any] = {}
        self.is_finished = False

    def init(self, **options: Any) -> None:
        self.options = options

    def log(self, content: dict[str, Any]) -> None:
        if not self.is_reachable:
            raise ConnectionError("no route to host")
        self.logged |= content

    def finish(self) -> None:
        self.is_finished = True

    def Text(self, text: str) -> str:  # noqa: N802
        return f"text: {text}"


MEASURED = [
    Measured(METRICS[0], ALL, "Greedy", Difference(0.25, 0.75, None, None, 4)),
    Measured(METRICS[0], "math", "Greedy", Difference(0.0, 0.5, None, None, 2)),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with loggers of others, and the report of its comparison."""
    loggers = [
        {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "p", "offline": True}},
        {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "."}},
        {"class_path": "swanlab.integration.pytorch_lightning.SwanLabLogger", "init_args": {"project": "q", "x": 1}},
    ]
    config = {
        "seed_everything": 42,
        "model": {"class_path": "SFT", "init_args": {"checkpoint": "m", "tuning": {"class_path": "LoRA"}}},
        "data": {"class_path": "SFTData", "init_args": {}},
        "trainer": {"precision": "32-true", "logger": loggers},
    }
    run = tmp_path / "town"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (run / "report.html").write_text("<p>页", encoding="utf-8")
    (run / "report.md").write_text("# 页", encoding="utf-8")
    return run


def test_it_is_a_run_of_its_own_beside_that_of_the_training(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb, swanlab = Wandb(), SwanLab()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "swanlab", swanlab)
    send_report(run, run, MEASURED)
    figures = {f"{METRICS[0].key}/before": 0.25, f"{METRICS[0].key}/after": 0.75}
    assert wandb.logged == {"report": "html: <p>页"}
    assert wandb.summary == figures
    wanted = {"project": "p", "mode": "offline", "name": "town comparison", "group": "town"}
    assert wandb.options.items() >= wanted.items()
    assert swanlab.logged == {"report": "text: # 页", **figures}
    assert swanlab.options == {"project": "q", "experiment_name": "town comparison"}
    assert swanlab.is_finished


def test_what_cannot_be_sent_is_told_of_and_stays(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    swanlab = SwanLab(is_reachable=False)
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed
    monkeypatch.setitem(sys.modules, "swanlab", swanlab)
    send_report(run, run, MEASURED)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0].startswith("the report was not given to WandbLogger (")
    assert said[1] == f"the report was not given to SwanLabLogger (no route to host): it is in {run}"
    assert swanlab.is_finished
