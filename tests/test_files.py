"""What is written is whole or not there, and nothing of anybody else is touched."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_sft.errors import CheckpointError, ConfigError, UserError
from lit_sft.files import remove_leftovers, whole_file, whole_folder, write_json
from lit_sft.report.comparison import REPORT, refuse_foreign


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    class Killed(BaseException):
        pass

    def write() -> None:
        with whole_file(path) as partial:
            partial.write_text("half")
            raise Killed

    with pytest.raises(Killed):
        write()
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    def write() -> None:
        with whole_folder(tmp_path / "model") as partial:
            (partial / "weights").write_text("w")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        write()
    assert not list(tmp_path.iterdir())
    with whole_folder(tmp_path / "model") as partial:
        (partial / "weights").write_text("w")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["weights"]


def test_what_somebody_else_calls_partial_is_kept(tmp_path: Path) -> None:
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "notes").write_text("mine")
    (tmp_path / "x.json.partial").write_text("mine")
    with whole_folder(tmp_path / "model"):
        pass
    write_json(tmp_path / "x.json", {})
    remove_leftovers(tmp_path / "model")
    remove_leftovers(tmp_path / "x.json")
    assert (tmp_path / "model.partial" / "notes").read_text() == "mine"
    assert (tmp_path / "x.json.partial").read_text() == "mine"


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    with whole_file(tmp_path / "last.ckpt") as partial:
        left = partial.name
    (tmp_path / left).write_text("half")
    remove_leftovers(tmp_path / "last.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_file_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_json(tmp_path / "x.json", {})
    assert (tmp_path / "x.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_of_the_user_beside_a_tiny_model_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_sft.cli import tiny

    monkeypatch.setattr(tiny, "find_family", lambda name: None)
    (tmp_path / "m.partial").mkdir()
    with pytest.raises((UserError, AttributeError)):  # whatever becomes of it
        tiny.tiny(str(tmp_path / "m"))
    assert [path.name for path in tmp_path.iterdir()] == ["m.partial"]
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="exists"):
        tiny.tiny(str(tmp_path / "link"))


@pytest.mark.parametrize("name", REPORT)
def test_compare_replaces_a_report_and_nothing_else(tmp_path: Path, name: str) -> None:
    refuse_foreign(tmp_path)
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match=f"{name} was not written by compare"):
        refuse_foreign(tmp_path)
    keys = ("about", "interval", "metrics", "forgetting")
    (tmp_path / "metrics.json").write_text(json.dumps(dict.fromkeys(keys)))
    refuse_foreign(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="was not written by compare"):
        refuse_foreign(tmp_path)


def link_to_file(path: Path) -> None:
    path.with_name("mine.txt").write_text("mine")
    path.symlink_to("mine.txt")


@pytest.mark.parametrize("occupy", [lambda path: path.write_text("mine"), link_to_file, os.mkfifo])
def test_preview_replaces_a_page_of_its_own_and_nothing_else(
    tmp_path: Path, occupy: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lit_sft.preview import page

    monkeypatch.setattr(page, "page", lambda preview: "<!doctype html>\n<title>What it will see</title>")
    file = tmp_path / "page.html"
    page.write_page(None, file)  # type: ignore[arg-type]
    page.write_page(None, file)  # type: ignore[arg-type]
    file.unlink()
    occupy(file)
    with pytest.raises(ConfigError, match="left as it is"):
        page.write_page(None, file)  # type: ignore[arg-type]
    assert not file.is_file() or file.read_text() == "mine"
