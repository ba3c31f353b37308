"""Every overlay stacks on every configuration."""

import json
import sys
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from fakes import SwanLabLogger
from lightning.pytorch.cli import LightningCLI

from lit_sft.__main__ import main
from lit_sft.cli.fit import CLI, run_cli
from lit_sft.cli.parser import Parser

CONFIGS = Path(__file__).parent.parent / "configs"
ALL = sorted(CONFIGS.glob("*.yaml"))
OBJECTIVES = {"dpo": "DPO", "ipo": "IPO", "simpo": "SimPO", "orpo": "ORPO", "kto": "KTO"}
OVERLAYS: dict[str, dict[str, Any]] = {
    "ddp": {"trainer.strategy": "ddp", "trainer.devices": "auto"},
    "fsdp2": {"trainer.strategy": "fsdp2", "trainer.devices": "auto"},
    "multi_node": {"trainer.num_nodes": 2, "trainer.devices": 8},
    "debug": {"trainer.max_steps": 4, "trainer.enable_checkpointing": False, "trainer.detect_anomaly": True},
    "reward": {"model.class_path": "lit_sft.stages.reward.Reward"},
    **{
        name: {
            "model.class_path": "lit_sft.stages.preference.Preference",
            "model.init_args.objective.class_path": f"lit_sft.objectives.{name}.{objective}",
        }
        for name, objective in OBJECTIVES.items()
    },
    **{
        name: {"model.class_path": "lit_sft.stages.policy.Policy", "model.init_args.algorithm": name}
        for name in ("rloo", "grpo")
    },
    **{name: {"model.class_path": "lit_sft.stages.ppo.PPO"} for name in ("ppo", "moss_rlhf")},
}
OVERLAYS["wandb"] = {"trainer.logger.0.class_path": "lightning.pytorch.loggers.WandbLogger"}
OVERLAYS["swanlab"] = {"trainer.logger.0.class_path": "swanlab.integration.pytorch_lightning.SwanLabLogger"}
ON_ANSWERS = ("reward", *OBJECTIVES)
ON_PROMPTS = ("rloo", "grpo", "ppo", "moss_rlhf")


class OnlyParsed(CLI):
    """Makes nothing of what it reads."""

    last: LightningCLI

    def instantiate_classes(self) -> None:
        OnlyParsed.last = self

    def _run_subcommand(self, subcommand: str) -> None:
        pass

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {}


@pytest.fixture(autouse=True)
def swanlab(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of this name, which need not be installed."""
    name = "swanlab.integration.pytorch_lightning"
    for place in ("swanlab", "swanlab.integration", name):
        monkeypatch.setitem(sys.modules, place, ModuleType(place))
    monkeypatch.setattr(SwanLabLogger, "__module__", name)
    monkeypatch.setattr(sys.modules[name], "SwanLabLogger", SwanLabLogger, raising=False)


@pytest.fixture(scope="module")
def parser() -> Parser:
    """To make it takes longer than to use it."""
    run_cli(OnlyParsed, ["fit", "--config", str(CONFIGS / "quickstart.yaml")])
    parser = OnlyParsed.last.parser
    assert isinstance(parser, Parser)
    return parser


def test_only_the_verb_that_was_called_gets_a_parser(parser: Parser) -> None:
    assert [list(action.choices) for action in parser._actions if isinstance(action.choices, dict)] == [["fit"]]


def test_every_overlay_is_here() -> None:
    assert {file.stem for file in (CONFIGS / "overlays").glob("*.yaml")} == set(OVERLAYS)


@pytest.mark.parametrize("number", range(len(ALL)), ids=lambda number: ALL[number].stem)
def test_overlays_stack_on_a_configuration(number: int, parser: Parser) -> None:
    """Two or three of them on each, so that each overlay meets three configurations of different families."""
    config = ALL[number]
    for overlay, wanted in [*OVERLAYS.items()][number % 8 :: 8]:
        files = [str(config), str(CONFIGS / "overlays" / f"{overlay}.yaml")]
        parsed = parser.parse_args(["fit", *(word for file in files for word in ("--config", file))]).fit
        assert {name: _found(parsed, name) for name in wanted} == wanted
        # What the overlay does not say is as the configuration has it.
        assert parsed.trainer.gradient_clip_val == 1.0
        if overlay in (*ON_ANSWERS, *ON_PROMPTS):
            kind = "preference.PreferenceData" if overlay in ON_ANSWERS else "rollout_prompts.PromptData"
            assert parsed.data.class_path == f"lit_sft.data.{kind}"
            tuning = yaml.safe_load(config.read_text(encoding="utf-8"))["model"]["init_args"]["tuning"]
            assert parsed.model.init_args.tuning.class_path.endswith(f".{tuning['class_path']}")
            assert parsed.model.init_args.tuning.init_args.dropout == 0


def _found(parsed: Any, name: str) -> Any:
    """What stands at a key; of a list, in its place."""
    for part in name.split("."):
        parsed = parsed[int(part) if part.isdigit() else part]
    return parsed


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_opens_with_what_it_is_for_and_how_it_is_used(overlay: str) -> None:
    text = (CONFIGS / "overlays" / f"{overlay}.yaml").read_text(encoding="utf-8")
    header = "".join(takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    assert f"--config configs/overlays/{overlay}.yaml" in header


@pytest.mark.slow
def test_debug_makes_four_steps_and_no_checkpoint(write_config: Callable[..., str], tmp_path: Path) -> None:
    words = ["fit", "--config", write_config(), "--config", str(CONFIGS / "overlays" / "debug.yaml")]
    assert main(words) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "summary.json").read_text())["optimizer_steps"] == 4
    assert not (run / "checkpoints").exists()


LORA = {"class_path": "LoRA", "init_args": {"rank": 2, "dropout": 0.1}}
FULL = {"class_path": "Full"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overlay", "tuning"),
    [*((overlay, LORA) for overlay in ON_ANSWERS), ("reward", FULL), ("dpo", FULL), ("kto", FULL)],
    ids=lambda value: value if isinstance(value, str) else value["class_path"],
)
def test_overlays_on_answers_train_adapters_and_whole_models(
    overlay: str, tuning: dict[str, Any], write_config: Callable[..., str], tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    records = [
        {
            "conversations": [{"from": "human", "value": f"{a}加{b}等于几？"}],
            "chosen": f"等于{a + b}。",
            "rejected": "不知道",
        }
        for a in range(1, 4)
        for b in range(1, 4)
    ]
    pairs.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    words = [
        "fit",
        "--config",
        write_config(model={"tuning": tuning}, trainer={"max_steps": 2, "limit_val_batches": 1}),
    ]
    words += ["--config", str(CONFIGS / "overlays" / f"{overlay}.yaml")]
    words += [f"--data.init_args.corpora=[{{class_path: ShareGptPairs, init_args: {{path: {pairs}}}}}]"]
    words += ["--data.init_args.validation_fraction", "0.3", "--data.init_args.cache", str(tmp_path / "cache")]
    assert main(words) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "summary.json").read_text())["optimizer_steps"] == 2
    assert (run / ("model" if tuning["class_path"] == "Full" else "adapter")).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overlay", "tuning"), [("rloo", LORA), ("grpo", FULL), ("ppo", LORA)], ids=["rloo-LoRA", "grpo-Full", "ppo-LoRA"]
)
def test_overlays_on_prompts_train_adapters_and_whole_models(
    overlay: str, tuning: dict[str, Any], write_config: Callable[..., str], tmp_path: Path
) -> None:
    words = ["fit", "--config", write_config(model={"tuning": tuning}, trainer={"max_steps": 2})]
    words += ["--config", str(CONFIGS / "overlays" / f"{overlay}.yaml")]
    words += [f"--data.init_args.corpora=[{{class_path: Belle, init_args: {{path: {tmp_path / 'belle.json'}}}}}]"]
    words += ["--data.init_args.max_new_tokens", "8", "--data.init_args.micro_batch_size", "2"]
    words += ["--data.init_args.validation_fraction", "0.3", "--data.init_args.cache", str(tmp_path / "cache")]
    assert main(["check", *words[1:]]) == 0
    assert main(words) == 0
    (run,) = (tmp_path / "runs").iterdir()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["optimizer_steps"] == 2
    assert "val/reward" in json.dumps(summary)
    assert (run / ("model" if tuning["class_path"] == "Full" else "adapter")).is_dir()
    assert main([*words, "--config", str(CONFIGS / "overlays" / "debug.yaml")]) == 0
