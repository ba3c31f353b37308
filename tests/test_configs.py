"""Every configuration that ships trains, is checked and previewed, on a tiny stand-in for its checkpoint."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_sft.__main__ import main
from lit_sft.checkpoint.opening import find_family, released_family
from lit_sft.checkpoint.tiny import demo_texts
from lit_sft.families._base import TinySize

CONFIGS = Path(__file__).parent.parent / "configs"
DEMO = CONFIGS.parent / "lit_sft" / "demo"
TINY_FAMILIES = {"tiny-baichuan-7b": "baichuan-7b", "quickstart": "baichuan-7b", "quickstart_preferred": "baichuan-7b"}
DEMO_PAIRS = {"class_path": "AlpacaPairs", "init_args": {"path": str(DEMO / "preference_heldout.jsonl")}}
# Multiples of what the 4-bit kernels of the CPU ask for.
SIZE = TinySize(hidden_size=64, intermediate_size=128, num_layers=1, num_heads=4, vocab_size=1400, context_length=1024)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    @cache
    def make(family: str) -> Path:
        folder = tmp_path_factory.mktemp("models") / family
        folder.mkdir()
        torch.manual_seed(0)
        find_family(family).write_tiny(folder, demo_texts(), SIZE)
        return folder

    return make


@pytest.fixture(params=sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def config(request: pytest.FixtureRequest) -> Path:
    file: Path = request.param
    return file


@pytest.fixture
def small(config: Path, stand_in, corpus_file: Path, tmp_path: Path) -> list[str]:  # type: ignore[no-untyped-def]
    """The configuration with a stand-in for its checkpoint and its corpora; all else is as it ships."""
    folder = Path(yaml.safe_load(config.read_text(encoding="utf-8"))["model"]["init_args"]["checkpoint"]).name
    family = known.name if (known := released_family(folder)) else TINY_FAMILIES[folder]
    text = config.read_text(encoding="utf-8")
    is_sft = "SFTData" in text
    of_prompts: dict[str, Any] = {}
    if "PromptData" in text:  # the reward model that it names is made by another quickstart
        of_prompts = {
            "model.init_args.rewards": json.dumps([{"class_path": name} for name in ("Repetition", "NoEnd")]),
            "data.init_args.max_new_tokens": "2",
        }
    corpus = {"class_path": "Belle", "init_args": {"path": str(corpus_file)}} if is_sft else DEMO_PAIRS
    arguments = {
        "runs": tmp_path / "runs",
        "model.init_args.checkpoint": stand_in(family),
        "model.init_args.family": family,
        **({"model.init_args.generation.init_args.max_new_tokens": "2"} if config.stem != "quickstart_reward" else {}),
        "data.init_args.corpora": json.dumps([corpus]),
        "data.init_args.max_length": "512",
        "data.init_args.validation_fraction": "0.2",
        "data.init_args.num_workers": "0",
        "trainer.accelerator": "cpu",
        **of_prompts,
        **({"model.init_args.tuning.init_args.num_blocks": "1"} if "Freeze" in text else {}),  # it has no more
    }
    return ["--config", str(config), *options(arguments)]


def options(arguments: dict[str, Any]) -> list[str]:
    return [word for key, value in arguments.items() for word in (f"--{key}", str(value))]


@pytest.mark.slow
def test_configuration_passes_its_check(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *small]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    done = [words[0] for words in lines if "OK" in words]
    assert done == ["memory", "data", "first", "train", "validate", "save", "resume", "predict"]


@pytest.mark.slow
def test_configuration_is_previewed(config: Path, small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pairs = (DEMO / "preference_heldout.jsonl").read_text(encoding="utf-8").count("\n")
    assert main(["preview", *small, "--count", "1"]) == 0
    assert str(20 if "SFTData" in config.read_text(encoding="utf-8") else pairs) in capsys.readouterr().out


def test_memory_of_a_configuration_is_estimated(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *small, "--estimate_only", "true", "--device_memory", "80"]) == 0
    assert "of 80 GB a device" in capsys.readouterr().out


def test_configuration_opens_with_its_launch_command_and_memory_need(config: Path) -> None:
    header = config.read_text(encoding="utf-8").partition("\nseed_everything")[0]
    assert f"python -m lit_sft fit --config configs/{config.name}" in header
    assert "Memory:" in header
