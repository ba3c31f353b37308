"""A folder that is damaged or hostile is refused by the programs in one line, with exit code 2."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from binaries import binary, refused, run
from goldens import golden_checkpoint

from lit_sft.export.text_side import write_text_side

pytestmark = pytest.mark.slow  # the programs are built first

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The text side of a sentencepiece model and of a byte-level one."""
    binary()
    made = {}
    for name in ("chatglm-6b", "moss-16b"):
        made[name] = tmp_path_factory.mktemp("broken") / name
        made[name].mkdir()
        checkpoint = golden_checkpoint(name)
        tokenizer = checkpoint.load_tokenizer()
        write_text_side(checkpoint.family, tokenizer, made[name], num_texts=1, num_conversations=1)
    return made


def changed(folder: Path, target: Path, file: str, change: Change) -> Path:
    """A copy with another content of a JSON file."""
    (target / "tokenizer").mkdir(parents=True)
    for source in [*folder.glob("*.json"), *folder.glob("tokenizer/*")]:
        (target / source.relative_to(folder)).write_bytes(source.read_bytes())
    content = json.loads((target / file).read_text(encoding="utf-8"))
    content = change(content) or content
    (target / file).write_text(json.dumps(content), encoding="utf-8")
    return target


def with_value(*path: Any) -> Change:
    *keys, last, value = path

    def change(content: Any) -> None:
        for key in keys:
            content = content[key]
        content[last] = value

    return change


CONFIG = "tokenizer/config.json"


@pytest.mark.parametrize(
    ("name", "file", "change", "said"),
    [
        ("chatglm-6b", CONFIG, with_value("version", 2), "version"),
        ("chatglm-6b", CONFIG, with_value("kind", "wordpiece"), "expected sentencepiece or byte-bpe"),
        ("chatglm-6b", CONFIG, with_value("first_id", -1), "first_id is -1; expected a number from 0"),
        ("chatglm-6b", CONFIG, with_value("first_id", 2**70), "first_id"),
        ("chatglm-6b", CONFIG, with_value("texts", {"a": "b"}), "expected texts by ids"),
        ("chatglm-6b", CONFIG, with_value("polish", "beside_han", [["ab", "c"]]), "expected pairs of characters"),
        ("chatglm-6b", CONFIG, with_value("model_sha256", "0"), "text.model is not the model that config.json"),
        ("chatglm-6b", CONFIG, lambda content: [content], "is not a JSON object"),
        ("moss-16b", CONFIG, with_value("pieces", ["a"]), "expected one for each byte"),
        ("moss-16b", CONFIG, with_value("pieces", 0, "中"), "expected characters that are bytes"),
        ("moss-16b", CONFIG, with_value("merges", 0, [0, 1, 1 << 40]), "merges is 1099511627776; expected a number"),
        ("moss-16b", CONFIG, with_value("merges", 0, [0, 1, 2]), "expected ids of two pieces and of both in one"),
        ("moss-16b", CONFIG, with_value("letters", [[9, 5]]), "expected stretches of code points"),
        ("moss-16b", "prompt.json", with_value("version", "1"), "version"),
        ("moss-16b", "prompt.json", with_value("unit", "sentence"), "expected message or turn"),
        ("moss-16b", "prompt.json", with_value("user", [{}]), "a piece is neither a token nor a text"),
        ("moss-16b", "prompt.json", with_value("user", [{"text": "{secret}"}]), "expected slots that there are"),
        ("moss-16b", "prompt.json", with_value("user", [{"text": "a {content"}]), "expected slots in pairs of braces"),
        ("moss-16b", "prompt.json", with_value("fit", "most", 0), "most is 0; expected a number from 1"),
        ("moss-16b", "prompt.json", with_value("stop", [1.5]), "stop is 1.5"),
        ("moss-16b", "prompt.json", with_value("refuse", ["everything"]), "expected conditions that there are"),
        ("moss-16b", "prompt.json", lambda content: content.pop("user") and content, "user is missing"),
    ],
)
def test_a_wrong_value_is_named(
    name: str, file: str, change: Change, said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    verb, line = ("prompt", '{"messages": [{"role": "user", "content": "a"}]}\n')
    message = refused(verb, changed(folders[name], tmp_path / "model", file, change), line)
    assert said in message
    assert file in message or "text.model" in message


@pytest.mark.parametrize("file", ["tokenizer/config.json", "tokenizer/text.model", "prompt.json"])
def test_a_file_that_is_missing_or_cut_off_is_named(file: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(folders["chatglm-6b"], tmp_path / "model", "prompt.json", lambda content: None)
    line = '{"messages": [{"role": "user", "content": "a"}]}\n'
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    assert file in refused("prompt", folder, line)
    (folder / file).unlink()
    assert f"{file} is not a file" in refused("prompt", folder, line)


BOMB = "[" * 400_000 + "]" * 400_000
"""Valid, and deeper than the stack of a program whose functions follow each bracket by a call of their own."""


@pytest.mark.parametrize(
    "content",
    [BOMB[:400_000], BOMB, f'{{"version": {BOMB}}}', '{"a": "' + "[" * 65 + '"}'],
    ids=["open", "whole", "value", "text"],
)
def test_a_bomb_of_brackets_is_refused(content: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(folders["chatglm-6b"], tmp_path / "model", "prompt.json", lambda content: None)
    (folder / "prompt.json").write_text(content, encoding="utf-8")
    said = refused("prompt", folder)
    assert ("brackets in more than 64 others" if BOMB[:400_000] in content else "version is missing") in said
    assert "prompt.json" in said


def test_a_long_word_takes_no_long_time(folders: dict[str, Path]) -> None:
    (found,) = run("tokenize", folders["moss-16b"], [{"text": "ab" * 200_000}])
    assert len(found["ids"]) > 1000


@pytest.mark.parametrize(
    "line",
    ["[]", "{", '{"text": 5}', "{}", '{"text": "\\ud800"}', '{"text": "\xff"}', f'{{"text": {BOMB}}}'],
    ids=["list", "open", "number", "empty", "half a pair", "no UTF-8", "bomb"],
)
def test_a_line_that_is_not_a_record_is_named(line: str, folders: dict[str, Path]) -> None:
    done = subprocess.run(
        [binary(), "tokenize", "--model", folders["moss-16b"]],
        input=b'{"text": "a"}\n' + line.encode("latin-1") + b"\n",
        capture_output=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: line 2")


def test_unit_tests_pass() -> None:
    done = subprocess.run([binary("lit-sft-tests")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize("name", ["chatglm-6b", "moss-16b"])
def test_mutated_files_are_read_or_refused(name: str, folders: dict[str, Path]) -> None:
    number = 100 if name == "moss-16b" else 300  # its file is large
    done = subprocess.run([binary("lit-sft-mutate"), folders[name], str(number)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"of {number}" in done.stdout
