"""Every command in the READMEs and in docs/ works as it stands there, on small models and corpora of the same names.

Both languages have the same commands (test_documents.py), so those of the English pages are taken, each once. What
needs several devices, another network or a server is read to the whole configuration, and not run.
"""

import io
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import torch
import yaml
from pages import CHINESE, DOCS, OWN, PAGES, ROOT, Page

from lit_sft.__main__ import main
from lit_sft.checkpoint.opening import find_family
from lit_sft.checkpoint.tiny import demo_texts
from lit_sft.families._base import TinySize

ENGLISH = [page for page in PAGES if not page.name.endswith(CHINESE) and "reference" not in page.file.parts]
NAMES_OF_VERBS = {"python -m lit_sft check", "python -m lit_sft fit", "python -m lit_sft preview"}
"""What a sentence calls a verb; to run they need a configuration."""
COMMANDS = list(dict.fromkeys(c for page in ENGLISH for c in page.commands if c not in NAMES_OF_VERBS))
SIZE = TinySize(hidden_size=64, intermediate_size=128, num_layers=1, num_heads=4, vocab_size=1400, context_length=256)

# Folders that a configuration or a command names, and of which family they are.
MODELS = {
    "tiny-baichuan-7b": "baichuan-7b",
    "Baichuan-7B": "baichuan-7b",
    "Baichuan-13B-Base": "baichuan-13b",
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

CONFIGURED = ("fit", "validate", "test", "predict", "check", "preview", "compare")
ONLY_READ = {"serve", "export", "evaluate", "test"}
ANSWERED = "answered.jsonl"
"""Answers for a reward model to score."""


def words_of(command: str) -> list[str]:
    match = OWN.fullmatch(command)
    assert match
    return shlex.split(match["words"])


def is_read(command: str) -> bool:
    """Whether a command is read only: other tests run what it does, on networks of their own."""
    words = words_of(command)
    is_another_fit = words[0] == "fit" and any(word.startswith(("configs/overlays", "--trainer.max")) for word in words)
    is_another_check = words[0] == "check" and "mine.yaml" in words
    is_ours_alone = command.startswith(("python", "echo"))
    return not is_ours_alone or words[0] in ONLY_READ or is_another_fit or is_another_check or ANSWERED in words


READ = [command for command in COMMANDS if is_read(command)]
RUN = [command for command in COMMANDS if command not in READ]


def test_every_verb_is_shown() -> None:
    from lit_sft.__main__ import CONFIGURED_VERBS, FUNCTION_VERBS

    assert {words_of(command)[0] for command in COMMANDS} == {*CONFIGURED_VERBS, *FUNCTION_VERBS}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory as the pages describe it, into which the commands go."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "lit_sft").symlink_to(ROOT / "lit_sft")
    (folder / "data").mkdir()
    (folder / "models").mkdir()
    for name, family in MODELS.items():
        (folder / "models" / name).mkdir()
        torch.manual_seed(0)
        find_family(family).write_tiny(folder / "models" / name, demo_texts(), SIZE)
    records = [{"instruction": f"{a}加{b}？", "input": "", "output": f"{a + b}。"} for a in range(5) for b in range(6)]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (folder / "data" / "Belle_open_source_0.5M.json").write_text(lines, encoding="utf-8")
    own = Page(DOCS / "own-data.md")
    (shown,) = [text for language, text in own.blocks if language == "json"]
    settings, of_a_table = [text for language, text in own.blocks if language == "yaml"]
    talks = [shown.replace("几点", f"{number}月{number}日几点") for number in range(1, 13)]
    (folder / "data" / "mine.jsonl").write_text("".join(talks), encoding="utf-8")
    (folder / "mine.yaml").write_text(settings, encoding="utf-8")
    assert "data/faq.parquet" in of_a_table
    parts = "\n\n".join(text for language, text in Page(DOCS / "extend.md").blocks if language == "python")
    (folder / "my_parts.py").write_text(parts, encoding="utf-8")
    (folder / "questions.txt").write_text("1加1？\n", encoding="utf-8")
    (folder / "questions.jsonl").write_text('{"prompt": "1加1？", "reference": "2。"}\n', encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
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
    for command in RUN:
        words = [named(word, place) for word in words_of(command)]
        match = OWN.fullmatch(command)
        said = match["said"] if match else None
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{said or '你好'}\n".encode())))
        if "auto" in words:  # as a run that was killed leaves it
            (min(runs_of(place)) / "summary.json").unlink()
        capsys.readouterr()
        if words[-1] in {"--help", "--print_config"} or "--model.help" in words:
            with pytest.raises(SystemExit) as done:
                main(words)
            assert done.value.code == 0, command
        elif main([*words, *options_of(words)]):
            failed.append((command, capsys.readouterr().err))
        elif said:
            assert len(capsys.readouterr().out.splitlines()) == 1
    assert failed == []


def parse_only(function: Callable[..., None], args: list[str], **options: Any) -> None:
    """In place of `auto_cli`, which would call the function."""
    parser = options["parser_class"]()
    parser.add_function_arguments(function, as_positional=False)
    parser.parse_args(args)


@pytest.mark.slow
def test_every_other_command_is_understood(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonargparse, "auto_cli", parse_only)
    for command in READ:
        verb, *rest = words_of(command)
        if verb not in CONFIGURED:
            assert main([verb, *rest]) == 0, command
            continue
        if "--run" in rest:  # whose configuration the verb would read
            place_of_run = rest.index("--run")
            del rest[place_of_run : place_of_run + 2]
        if "--config" not in rest:
            rest = ["--config", "configs/quickstart.yaml", *rest]
        with pytest.raises(SystemExit) as done:
            main(["fit" if verb == "check" else verb, *rest, "--print_config"])
        assert done.value.code == 0, command
        assert "class_path: lit_sft.stages" in capsys.readouterr().out


FRAGMENTS = sorted({text for page in ENGLISH for language, text in page.blocks if language == "yaml"})


@pytest.mark.slow
def test_fragments_of_configurations_are_read(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(FRAGMENTS) > 3
    for text in FRAGMENTS:
        overlay: dict[str, Any] = {}
        for key, value in yaml.safe_load(text).items():
            if key in {"data", "model", "trainer"}:
                overlay[key] = value
            else:
                part = overlay.setdefault("model" if key == "generation" else "data", {"init_args": {}})
                part["init_args"][key] = value
        file = place / "overlay.yaml"
        file.write_text(yaml.safe_dump(overlay), encoding="utf-8")
        with pytest.raises(SystemExit) as done:
            main(["fit", "--config", "configs/baichuan7b_lora.yaml", "--config", str(file), "--print_config"])
        assert done.value.code == 0, text
        assert next(iter(overlay)) in capsys.readouterr().out


def test_what_preview_is_said_to_show_is_what_it_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = Page(DOCS / "data.md").blocks
    place = next(i for i, (_, text) in enumerate(blocks) if text.startswith("python -m lit_sft preview"))
    command, shown = blocks[place][1], blocks[place + 1][1].splitlines()
    assert shown == Page(DOCS / f"data{CHINESE}").blocks[place + 1][1].splitlines()
    for name in ("configs", "lit_sft"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    assert main(["tiny", "--family", "baichuan-7b", "--output", "models/tiny-baichuan-7b"]) == 0
    capsys.readouterr()
    assert main(shlex.split(command)[3:]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line.rstrip() not in map(str.rstrip, lines)] == []
