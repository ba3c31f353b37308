"""What a configuration says is read as it was meant, in every locale, or refused with file and line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lit_sft.config_file import read_configuration, with_parts
from lit_sft.configuration import ShortErrorParser
from lit_sft.errors import ConfigError


def written(folder: Path, text: str) -> Path:
    file = folder / "config.yaml"
    file.write_bytes(text.encode())
    return file


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", "key a stands twice, in lines 1 and 3"),
        ("trainer:\n  x:\n    - b: 1\n      b: 1\n", r"key trainer\.x\[0\]\.b stands twice, in lines 3 and 4"),
        ("a: {b: 1, b: 2}\n", r"key a\.b stands twice, in lines 1 and 1"),
        ("a:\n\tb: 1\n", r"config\.yaml, line 2: .* spaces, not with tabs"),
        ("a: [1\nb: 2\n", r"config\.yaml, line 2: .*bracket or brace is not closed"),
        ("a: 1\n  b: 2\n", r"config\.yaml, line 2: .*indented deeper"),
        ("a: @b\n", r"config\.yaml, line 1: .*in quotes"),
        ("", r"config\.yaml holds no keys"),
        ("- a\n", r"config\.yaml holds no keys"),
        ("a: 1\ndata: no.yaml\n", r"config\.yaml, line 2: data names no\.yaml, which is not a file"),
        ("data: config.yaml\n", r"config\.yaml, line 1: data names config\.yaml, which names this file"),
        ("- " * 5000 + "a\n", r"config\.yaml is not YAML: nested too deeply"),
    ],
)
def test_what_yaml_would_drop_or_cannot_read_is_named_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        read_configuration(written(tmp_path, text))


@pytest.mark.parametrize("words", [["--corpora", "[{path: a, path: b}]"], ['--corpora=[{"path": "a", "path": "b"}]']])
def test_the_command_line_may_not_say_a_thing_twice_either(words: list[str]) -> None:
    parser = ShortErrorParser()
    parser.add_argument("--corpora", type=list[dict[str, str]])
    with pytest.raises(ConfigError, match=r"command line: key \[0\]\.path stands twice"):
        parser.parse_args(words)
    assert parser.parse_args(["--corpora", "[{path: a}, {path: b}]"]).corpora == [{"path": "a"}, {"path": "b"}]


@pytest.mark.parametrize("key", ["corpora", "test_corpora", "forgetting"])
@pytest.mark.parametrize("value", ["data/belle.json", "[belle.jsonl]", "[Belle, data/*]", "'belle.JSON'"])
def test_a_file_of_records_in_the_place_of_a_corpus_is_answered_with_what_to_write(
    tmp_path: Path, key: str, value: str
) -> None:
    with pytest.raises(ConfigError, match=r"line 2: .*not the class that reads it\. Write \[\{class_path: Belle"):
        read_configuration(written(tmp_path, f"data:\n  {key}: {value}\n"))
    with pytest.raises(ConfigError, match="not the class that reads it"):
        with_parts([f"--data.init_args.{key}", value])
    with pytest.raises(ConfigError, match="not the class that reads it"):
        with_parts([f"--data.{key}+={value}"])


def test_classes_of_corpora_by_name_or_in_a_file_are_none_of_that(tmp_path: Path) -> None:
    read_configuration(written(tmp_path, "corpora: [Belle, my.package.Corpus, {class_path: Belle, path: a.json}]\n"))
    with_parts(["--data.corpora", "[{class_path: Belle, init_args: {path: data/a.json}}]"])


def test_a_part_in_a_file_of_its_own_is_held_to_the_same(tmp_path: Path) -> None:
    file, part = written(tmp_path, "data: parts/data.yaml\nlr: 1e-4\n"), tmp_path / "parts" / "data.yaml"
    part.parent.mkdir()
    part.write_bytes("name: 中文\ncorpora: [one.yaml]\n".encode())
    (part.parent / "one.yaml").write_bytes("path: 数据.json\n".encode())
    read = yaml.safe_load(read_configuration(file))
    assert read == {"data": {"name": "中文", "corpora": [{"path": "数据.json"}]}, "lr": "1e-4"}
    assert yaml.safe_load(with_parts(["--data", str(part)])[1]) == read["data"]
    with pytest.raises(ConfigError, match=r"--data names no\.yaml, which is not a file"):
        with_parts(["--data=no.yaml"])
    part.write_bytes(b"name: 1\nname: 2\n")
    with pytest.raises(ConfigError, match=r"data\.yaml: key name stands twice, in lines 1 and 2"):
        read_configuration(file)
    part.write_bytes("name: 中文\n".encode("gbk"))
    with pytest.raises(ConfigError, match=r"data\.yaml, line 1: not UTF-8"):
        read_configuration(file)


def test_the_same_key_in_two_places_and_an_alias_are_fine(tmp_path: Path) -> None:
    text = "a: &one {x: 1}\nb: {x: 2}\nc: *one\nd: [*one, *one]\n"
    assert read_configuration(written(tmp_path, text)) == text


def test_a_file_of_another_encoding_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes("a: 1\nb: 中文\n".encode("gbk"))
    with pytest.raises(ConfigError, match=r"config\.yaml, line 2: not UTF-8"):
        read_configuration(tmp_path / "config.yaml")


def test_a_configuration_is_utf_8_in_every_locale(tmp_path: Path) -> None:
    file = written(tmp_path, "\ufeffname: 中文\n")
    code = (
        "import sys, lit_sft.configuration as c; p = c.ShortErrorParser()\n"
        "p.add_argument('--config', action='config')\n"
        "p.add_argument('--name', type=str); assert p.parse_args(['--config', sys.argv[1]]).name == '\\u4e2d\\u6587'"
    )
    # Without the UTF-8 mode that the C locale would switch on, files are ASCII by default.
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code, str(file)], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [["--config=~/config.yaml"], ["--config", "$PLACE/config.yaml"]])
def test_home_and_environment_stand_in_the_name_of_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", str(tmp_path))
    written(tmp_path, "name: x\n")
    parser = ShortErrorParser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--name", type=str)
    assert parser.parse_args(words).name == "x"


def test_home_and_environment_stand_in_every_option_that_is_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("MODELS", "/models")
    monkeypatch.delenv("NOT_SET", raising=False)
    parser = ShortErrorParser()
    for option in ("checkpoint", "output", "runs", "name"):
        parser.add_argument(f"--{option}", type=str | list[str] | None)
    parser.add_argument("--corpora", type=list[dict[str, list[str]]])
    words = ["--checkpoint=$MODELS/a", "--output=${NOT_SET}/b", '--runs=["~/c"]', "--name=~/$MODELS"]
    read = parser.parse_args([*words, '--corpora=[{"path": ["~/d", "$MODELS/e"]}]'])
    assert read.checkpoint == "/models/a"
    assert read.output == "${NOT_SET}/b"
    assert read.runs == ["/home/me/c"]
    assert read.name == "~/$MODELS"
    assert read.corpora == [{"path": ["/home/me/d", "/models/e"]}]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("configs/baichuan7b_lorra.yaml", "configs/baichuan7b_lora.yaml"),
        ("baichuan7b_lora", "configs/baichuan7b_lora.yaml"),
        ("Baichuan7B_LoRA.yml", "configs/baichuan7b_lora.yaml"),
        ("configs/dpo.yaml", "configs/overlays/dpo.yaml"),
        ("own/mine.yaml", "own/mein.yaml"),
        ("configs", "configs"),
        ("什么.yaml", None),
    ],
)
def test_a_configuration_that_is_not_there_is_answered_with_the_one_that_is_meant(
    given: str, meant: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("configs/baichuan7b_lora.yaml", "configs/overlays/dpo.yaml", "own/mein.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a: 1\n")
    monkeypatch.chdir(tmp_path)
    parser = ShortErrorParser()
    parser.add_argument("--config", action="config")
    with pytest.raises(ConfigError) as refused:
        parser.parse_args(["--config", given])
    hint = f". Did you mean {meant}?" if meant and meant != given else ""
    assert str(refused.value) == f"{given} is not a file{hint}"
    with pytest.raises(ConfigError, match="is not a file"):
        parser.parse_args([f"--config={given}"])
