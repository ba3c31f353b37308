"""Every command in the two READMEs is run as it stands there, on small models and corpora that have the same names."""

import io
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
import yaml

from lit_sft.__main__ import main
from lit_sft.checkpoint.opening import find_family
from lit_sft.checkpoint.tiny import demo_texts
from lit_sft.families._base import TinySize

REPOSITORY = Path(__file__).parents[1]
READMES = ("README.md", "README.zh-CN.md")
CODE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`]+)`")
COMMAND = re.compile(
    r"(?:echo (?P<said>\S+) \| )?(?P<launcher>(?:srun|torchrun) .*?)?(?:python )?-m lit_sft (?P<words>.*)"
)
SIZE = TinySize(hidden_size=64, intermediate_size=128, num_layers=1, num_heads=4, vocab_size=1400, context_length=256)

# Folders that a configuration or a command names, and of which family they are.
MODELS = {
    "tiny-baichuan-7b": "baichuan-7b",
    "Baichuan-7B": "baichuan-7b",
    "Baichuan-13B-Base": "baichuan-13b",
    "moss-moon-003-sft": "moss",
    "A": "baichuan-7b",
    "B": "chatglm2-6b",
}
# What a test may shorten of a command that names a configuration.
SMALL = {
    "model.init_args.generation.init_args.max_new_tokens": 2,
    "data.init_args.max_length": 64,
    "data.init_args.validation_fraction": 0.2,
    "data.init_args.num_workers": 0,
    "trainer.accumulate_grad_batches": 1,
    "trainer.val_check_interval": 1.0,
    "trainer.enable_progress_bar": "false",
}
REWARDS = Path("rewards")
"""Folder of the run that stands for runs/REWARD."""

LAUNCHED = ("ddp.yaml", "fsdp2.yaml")
"""Overlays for several devices: such commands are read to the whole configuration, not run."""


def code_of(readme: str) -> list[tuple[str, str]]:
    """Language and text of each block, and of what stands in a line."""
    text = (REPOSITORY / readme).read_text(encoding="utf-8")
    blocks = [(match[1], match[2]) for match in CODE.finditer(text)]
    return blocks + [("", match[1].replace("\n", " ")) for match in INLINE.finditer(CODE.sub("", text))]


def commands_of(readme: str) -> list[str]:
    """Those of our own, without comments, in the order in which they stand."""
    lines = [line for _, text in code_of(readme) for line in text.replace("\\\n", " ").splitlines()]
    found = [match for line in lines if (match := COMMAND.fullmatch(line.partition("  #")[0].rstrip()))]
    return [re.sub(r"\s+", " ", match[0]) for match in found]


COMMANDS = commands_of(READMES[0])


def test_both_languages_have_the_same_commands() -> None:
    assert commands_of(READMES[1]) == COMMANDS
    verbs = {match["words"].split()[0] for command in COMMANDS if (match := COMMAND.fullmatch(command))}
    assert verbs >= {
        "fit",
        "validate",
        "predict",
        "check",
        "preview",
        "compare",
        "chat",
        "merge",
        "runs",
        "summary",
        "tiny",
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory as the READMEs describe it, into which the commands go."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    (folder / "lit_sft").symlink_to(REPOSITORY / "lit_sft")
    (folder / "data").mkdir()
    (folder / "models").mkdir()
    for name, family in MODELS.items():
        (folder / "models" / name).mkdir()
        torch.manual_seed(0)
        find_family(family).write_tiny(folder / "models" / name, demo_texts(), SIZE)
    records = [{"instruction": f"{a}加{b}？", "input": "", "output": f"{a + b}。"} for a in range(5) for b in range(6)]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (folder / "data" / "Belle_open_source_0.5M.json").write_text(lines, encoding="utf-8")
    moss = [{"conversation": [{"human": r["instruction"], "assistant": r["output"]}]} for r in records]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in moss)
    (folder / "data" / "moss-003-sft-no-tools.jsonl").write_text(lines, encoding="utf-8")
    pairs = [
        {
            "conversations": [{"from": "human", "value": record["instruction"]}],
            "chosen": {"from": "gpt", "value": record["output"]},
            "rejected": {"from": "gpt", "value": "不知道。"},
        }
        for record in records
    ]
    (folder / "data" / "dpo_zh.json").write_text(json.dumps(pairs, ensure_ascii=False), encoding="utf-8")
    (folder / "questions.txt").write_text("1加1？\n", encoding="utf-8")
    (folder / "questions.jsonl").write_text('{"prompt": "1加1？", "reference": "2。"}\n', encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        model = ["--model.init_args.checkpoint", "models/A", "--trainer.max_steps", "1", "--runs", str(REWARDS)]
        assert main(["fit", "--config", "configs/quickstart_reward.yaml", *model]) == 0
        yield folder


def runs_of(place: Path) -> list[Path]:
    """Whole runs, the newest last."""
    found = [run for run in (place / "runs").glob("*") if (run / "checkpoints" / "last.ckpt").is_file()]
    return sorted(found, key=lambda run: (run / "config.yaml").stat().st_mtime)


def options_of(words: list[str]) -> list[str]:
    """What makes a command small: options behind its own, for they win."""
    verb = words[0]
    if "--config" not in words:
        return ["--trainer.max_steps", "2"] if verb == "fit" and "--resume" in words else []
    small: dict[str, Any] = dict(SMALL)
    if verb == "fit":
        small |= {"trainer.max_epochs": 1, "trainer.max_steps": 2 if "auto" in words else 1}
    if "configs/overlays/reward.yaml" in words:  # it answers nothing
        del small["model.init_args.generation.init_args.max_new_tokens"]
    if "configs/overlays/debug.yaml" in words:
        del small["trainer.val_check_interval"]
    return [word for key, value in small.items() for word in (f"--{key}", str(value))]


def named(word: str, place: Path) -> str:
    """The folder that stands for NAME, OTHER and the like."""
    runs = runs_of(place)
    if word == "runs/REWARD":
        return str(next((place / REWARDS).iterdir()))
    if word.startswith("runs/") and runs:
        return word.replace("NAME", runs[-1].name).replace("OTHER", runs[0].name)
    return {"MODEL": "models/A", "ADAPTER": str(runs[-1] / "adapter") if runs else ""}.get(word, word)


@pytest.mark.slow
def test_every_command_does_what_it_says(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = []
    for command in COMMANDS:
        match = COMMAND.fullmatch(command)
        assert match
        words = [named(word, place) for word in shlex.split(match["words"])]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{match['said'] or '你好'}\n".encode())))
        is_launched = bool(match["launcher"]) or any(word.endswith(LAUNCHED) for word in words)
        if "auto" in words and not is_launched:  # as a run that was killed leaves it
            (min(runs_of(place)) / "summary.json").unlink()
        capsys.readouterr()
        if is_launched or "--help" in words:
            with pytest.raises(SystemExit) as done:
                main([*words, "--print_config"] if is_launched else words)
            assert done.value.code == 0, command
            said = capsys.readouterr().out
            assert "class_path: lit_sft.stages.sft.SFT" in said if is_launched else "usage" in said
            continue
        if main([*words, *options_of(words)]):
            failed.append((command, capsys.readouterr().err))
        elif match["said"]:
            assert len(capsys.readouterr().out.splitlines()) == 1
    assert failed == []


@pytest.mark.slow
@pytest.mark.parametrize("readme", READMES)
def test_fragments_of_configurations_are_read(readme: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fragments = [yaml.safe_load(dedent(text)) for language, text in code_of(readme) if language == "yaml"]
    assert len(fragments) == 3
    for fragment in fragments:
        overlay: dict[str, Any] = {"data": {"init_args": {}}, "model": {"init_args": {}}}
        for key, value in fragment.items():
            where = {"generation": overlay["model"]["init_args"], "trainer": overlay}
            where.get(key, overlay["data"]["init_args"])[key] = value
        file = place / "overlay.yaml"
        file.write_text(yaml.safe_dump({key: value for key, value in overlay.items() if value != {"init_args": {}}}))
        with pytest.raises(SystemExit) as done:
            main(["fit", "--config", "configs/baichuan7b_lora.yaml", "--config", str(file), "--print_config"])
        assert done.value.code == 0
        assert next(iter(fragment)) in capsys.readouterr().out


@pytest.mark.parametrize("readme", READMES)
def test_what_preview_is_said_to_show_is_what_it_shows(
    readme: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = [text for _, text in code_of(readme) if text.startswith("python -m lit_sft preview")]
    command, *shown = example.splitlines()
    for name in ("configs", "lit_sft"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    monkeypatch.chdir(tmp_path)
    assert main(["tiny", "--family", "baichuan-7b", "--output", "models/tiny-baichuan-7b"]) == 0
    capsys.readouterr()
    assert main(shlex.split(command)[3:]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line.rstrip() not in map(str.rstrip, lines)] == []
