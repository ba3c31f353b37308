"""Every overlay stacks on every configuration."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.cli import LightningCLI

from lit_sft.__main__ import main
from lit_sft.cli.fit import CLI, run_cli
from lit_sft.cli.parser import Parser

CONFIGS = Path(__file__).parent.parent / "configs"
OVERLAYS: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp", "devices": "auto"},
    "fsdp2": {"strategy": "fsdp2", "devices": "auto"},
    "multi_node": {"num_nodes": 2, "devices": 8},
    "debug": {"max_steps": 4, "enable_checkpointing": False, "detect_anomaly": True},
}


class OnlyParsed(CLI):
    """Makes nothing of what it reads."""

    last: LightningCLI

    def instantiate_classes(self) -> None:
        OnlyParsed.last = self

    def _run_subcommand(self, subcommand: str) -> None:
        pass

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {}


@pytest.fixture(scope="module")
def parser() -> Parser:
    """To make it takes longer than to use it."""
    run_cli(OnlyParsed, ["fit", "--config", str(CONFIGS / "quickstart.yaml")])
    parser = OnlyParsed.last.parser
    assert isinstance(parser, Parser)
    return parser


def test_every_overlay_is_here() -> None:
    assert {file.stem for file in (CONFIGS / "overlays").glob("*.yaml")} == set(OVERLAYS)


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_overlay_stacks_on_a_configuration(config: Path, parser: Parser) -> None:
    for overlay, wanted in OVERLAYS.items():
        files = [str(config), str(CONFIGS / "overlays" / f"{overlay}.yaml")]
        trainer = parser.parse_args(["fit", *(word for file in files for word in ("--config", file))]).fit.trainer
        assert {name: trainer[name] for name in wanted} == wanted
        # What the overlay does not say is as the configuration has it.
        assert trainer.gradient_clip_val == 1.0


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_opens_with_what_it_is_for_and_how_it_is_used(overlay: str) -> None:
    header = (CONFIGS / "overlays" / f"{overlay}.yaml").read_text(encoding="utf-8").partition("\ntrainer:")[0]
    assert header.startswith("# ")
    assert f"--config configs/overlays/{overlay}.yaml" in header


def test_debug_makes_four_steps_and_no_checkpoint(write_config: Callable[..., str], tmp_path: Path) -> None:
    words = ["fit", "--config", write_config(), "--config", str(CONFIGS / "overlays" / "debug.yaml")]
    assert main(words) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "summary.json").read_text())["optimizer_steps"] == 4
    assert not (run / "checkpoints").exists()
