"""What is recorded of a run, and what becomes of verbs where that is damaged."""

import io
import sys
from pathlib import Path

import pytest
import yaml

from lit_sft.__main__ import main
from lit_sft.errors import ConfigError
from lit_sft.runs.folder import WRITTEN, read_config

WHOLE = {
    "seed_everything": 1,
    "trainer": {"precision": None},
    "model": {
        "class_path": "lit_sft.stages.sft.SFT",
        "init_args": {"checkpoint": "models/moss", "tuning": {"class_path": "lit_sft.tuning.lora.LoRA"}},
    },
    "data": {"class_path": "lit_sft.data.sft.SFTData", "init_args": {}},
}


def written(run: Path, content: bytes) -> Path:
    run.mkdir()
    (run / "config.yaml").write_bytes(content)
    return run


def test_a_whole_configuration_is_read_with_a_mark_of_windows_or_without(tmp_path: Path) -> None:
    for mark in (b"", b"\xef\xbb\xbf"):
        run = written(tmp_path / f"run{len(mark)}", mark + yaml.safe_dump(WHOLE).encode())
        assert read_config(run) == WHOLE


@pytest.mark.parametrize("place", WRITTEN)
def test_what_a_configuration_lacks_is_named(place: str, tmp_path: Path) -> None:
    content = yaml.safe_load(yaml.safe_dump(WHOLE))
    *above, last = place.split(".")
    inside = content
    for key in above:
        inside = inside[key]
    del inside[last]
    with pytest.raises(ConfigError, match=f"config.yaml is damaged: it has no {place}, which fit writes"):
        read_config(written(tmp_path / "run", yaml.safe_dump(content).encode()))


@pytest.mark.parametrize(
    "content",
    [b"", b"a: [1,\n", b"model: 3\n", b"- 1\n", b"name: \xb2\xe2\n", b"model: {}\nmodel: {}\n", b"\0\0\0\0"],
    ids=["empty", "not YAML", "without parts", "a list", "not UTF-8", "a key twice", "zeros"],
)
@pytest.mark.parametrize("verb", ["chat", "merge --output {}/new", "export --output {}/new"])
def test_a_damaged_configuration_is_one_line_in_every_verb(
    verb: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    run = written(tmp_path / "run", content)
    name, *options = verb.format(tmp_path).split()
    assert main([name, "--run", str(run), *options]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert str(run / "config.yaml") in line or "model" in line
    assert not (tmp_path / "new").exists()
