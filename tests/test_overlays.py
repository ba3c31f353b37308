"""Every overlay stacks on every configuration."""

from pathlib import Path

import pytest
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningCLI

from lit_sft.cli import CLI, run_cli

CONFIGS = Path(__file__).parent.parent / "configs"
OVERLAYS = {
    "ddp": {"strategy": "ddp", "devices": "auto"},
    "fsdp2": {"strategy": "fsdp2", "devices": "auto"},
    "multi_node": {"num_nodes": 2, "devices": 8},
    "debug": {"max_steps": 4, "enable_checkpointing": False, "detect_anomaly": True},
}


class OnlyParsed(CLI):
    """Makes nothing of what it reads."""

    parsed: Namespace

    def before_instantiate_classes(self) -> None:
        OnlyParsed.parsed = self.config["fit"]

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def test_every_overlay_is_here() -> None:
    assert {file.stem for file in (CONFIGS / "overlays").glob("*.yaml")} == set(OVERLAYS)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_overlay_stacks_on_configuration(config: Path, overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LightningCLI, "_prepare_subcommand_kwargs", lambda *_: {})
    run_cli(OnlyParsed, ["fit", "--config", str(config), "--config", str(CONFIGS / "overlays" / f"{overlay}.yaml")])
    trainer = OnlyParsed.parsed.trainer
    assert {name: trainer[name] for name in OVERLAYS[overlay]} == OVERLAYS[overlay]
    # What the overlay does not say is as the configuration has it.
    assert trainer.gradient_clip_val == 1.0


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_opens_with_what_it_is_for_and_how_it_is_used(overlay: str) -> None:
    header = (CONFIGS / "overlays" / f"{overlay}.yaml").read_text(encoding="utf-8").partition("\ntrainer:")[0]
    assert header.startswith("# ")
    assert f"--config configs/overlays/{overlay}.yaml" in header
