"""An exported folder is compared with its manifest, and read as it was exported."""

import hashlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_sft import open_checkpoint
from lit_sft.__main__ import main
from lit_sft.checkpoint.exported import check_files
from lit_sft.errors import CheckpointError

Tiny = Callable[[str], Path]
FILES = ("model.onnx", "model.onnx.data", "prompt.json", "tokenizer/config.json", "tokenizer/text.model", "config.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What stands in one, the contents aside."""
    (tmp_path / "tokenizer").mkdir()
    for name in FILES:
        (tmp_path / name).write_bytes(name.encode())
    write_manifest(tmp_path, {name: entry(tmp_path / name) for name in FILES})
    return tmp_path


def entry(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def write_manifest(folder: Path, files: Any) -> None:
    (folder / "manifest.json").write_text(json.dumps({"files": files}), encoding="utf-8")


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        check_files(folder)
    assert "\n" not in str(refused.value)
    assert str(folder) in str(refused.value)
    return str(refused.value)


def test_a_folder_as_it_was_exported_is_taken_and_settings_may_be_edited(folder: Path) -> None:
    check_files(folder)
    (folder / "config.json").write_text("edited")
    check_files(folder)
    for name in ("prompt.json", "tokenizer/config.json", "tokenizer/text.model"):  # of a reward model
        (folder / name).unlink()
    write_manifest(folder, {name: entry(folder / name) for name in ("model.onnx", "model.onnx.data")})
    check_files(folder)


@pytest.mark.parametrize("name", FILES[:-1])
def test_a_file_that_is_another_or_gone_is_named(folder: Path, name: str) -> None:
    file = folder / name
    whole = file.read_bytes()
    if name != "model.onnx.data":  # gigabytes, of which the size alone is compared
        file.write_bytes(whole[:-1] + b"!")
        assert f"{name} was changed: its SHA-256 is not that in manifest.json; copy the folder" in refusal(folder)
    file.write_bytes(whole + b" ")
    assert f"{name} has {len(whole) + 1} bytes, and {len(whole)} in manifest.json" in refusal(folder)
    file.unlink()
    assert f"{name} is missing; copy the folder again, or export the model again" in refusal(folder)


@pytest.mark.parametrize("name", FILES[:-1])
@pytest.mark.parametrize(
    "said",
    [None, [], {}, {"bytes": "5", "sha256": "a"}, {"bytes": 5}, {"bytes": 5, "sha256": 5}, {"bytes": None}, 7],
    ids=str,
)
def test_a_manifest_that_says_no_size_or_hash_is_named(folder: Path, name: str, said: Any) -> None:
    files = {each: entry(folder / each) for each in FILES}
    files[name] = said
    write_manifest(folder, files)
    assert f"manifest.json does not say size and hash of {name}" in refusal(folder)
    del files[name]
    write_manifest(folder, files)
    assert f"manifest.json does not say size and hash of {name}" in refusal(folder)


@pytest.mark.parametrize("said", [-1, 10**30, True, 0])
def test_a_size_that_no_file_has_is_another(folder: Path, said: Any) -> None:
    write_manifest(folder, {name: {**entry(folder / name), "bytes": said} for name in FILES})
    assert "in manifest.json" in refusal(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": []}', "{}", '{"files": null}', "[" * 100_000, "\x00"])
def test_a_manifest_that_is_damaged_or_gone_is_named(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    assert "manifest.json" in refusal(folder)
    (folder / "manifest.json").unlink()
    assert "manifest.json is missing" in refusal(folder)


@pytest.fixture
def graph(tiny: Tiny, tmp_path: Path) -> Path:
    """A folder that opens like an exported one; there is no graph in it."""
    folder = Path(shutil.copytree(tiny("baichuan2-7b"), tmp_path / "graph"))
    (folder / "model.onnx").touch()
    write_generation(folder)
    return folder


def write_generation(folder: Path, **changed: Any) -> None:
    content = {"version": 1, "family": "baichuan2-7b", "prompt_format": "human-assistant", **changed}
    (folder / "generation.json").write_text(json.dumps(content), encoding="utf-8")


def test_a_graph_reads_prompts_in_the_format_in_which_it_was_exported(graph: Path) -> None:
    assert open_checkpoint(graph).family.prompt_format_name == "human-assistant"
    assert open_checkpoint(graph, prompt_format="chat").family.prompt_format_name == "chat"
    write_generation(graph, prompt_format="chat")
    assert open_checkpoint(graph).family.prompt_format_name == "chat"


def test_a_graph_is_of_the_family_with_which_it_was_exported_where_config_json_leaves_it_open(
    graph: Path, tiny: Tiny
) -> None:
    config = json.loads((graph / "config.json").read_text()) | {"vocab_size": 1000}
    (graph / "config.json").write_text(json.dumps({**config, "model_type": "of_tomorrow", "architectures": ["New"]}))
    (graph / "generation.json").unlink()
    with pytest.raises(CheckpointError, match="Name it with `family:`"):
        open_checkpoint(graph)
    write_generation(graph)
    assert open_checkpoint(graph).family.name == "baichuan2-7b"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"version": 2}, "version is 2, and this lit_sft reads 1; export the model again"),
        ({"version": "1"}, "version is '1'"),
        ({"version": None}, "version is None"),
        ({"family": "moss"}, "family is 'moss', and not that of config.json. Accepted: baichuan2-7b"),
        ({"family": ["moss"]}, "family is .*not a text"),
        ({"family": None}, "family is '', and not"),
        ({"prompt_format": "chatt"}, "prompt_format is 'chatt'. Did you mean 'chat'"),
        ({"prompt_format": 5}, "prompt_format is 5, not a text"),
        ({"prompt_format": None}, "prompt_format is ''"),
    ],
    ids=str,
)
def test_what_generation_json_says_of_the_text_is_checked(graph: Path, changed: dict[str, Any], said: str) -> None:
    write_generation(graph, **changed)
    with pytest.raises(CheckpointError, match=rf"generation\.json: {said}") as refused:
        open_checkpoint(graph)
    assert "\n" not in str(refused.value)


def test_a_verb_refuses_a_damaged_folder_in_one_line(
    graph: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    assert main(["chat", "--checkpoint", str(graph)]) == 2
    error = capsys.readouterr().err
    assert error == f"error: {graph / 'manifest.json'} is missing; copy the folder again, or export the model again\n"
