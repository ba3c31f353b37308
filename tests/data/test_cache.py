"""The cache: named after what decides, on a disk of the machine, never larger than it need be."""

import ast
import fcntl
import logging
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lit_sft.checkpoint.opening import families
from lit_sft.corpora.belle import Belle
from lit_sft.data import cache_place, cache_pruning
from lit_sft.data.cache import build_once
from lit_sft.data.cache_place import cache_folder, file_system
from lit_sft.data.cache_pruning import DAY, hold_cache, prune
from lit_sft.data.deciding_code import _code_of, deciding_files

CODE = '''
"""What the module is for."""
LIMIT = 3
"""What the limit is for."""

def cut(text: str) -> str:
    """What it does."""
    if len(text) > LIMIT:
        return text[:LIMIT]  # why
    return text
'''


def code_of(source: str) -> str:
    return _code_of(ast.parse(source))


@pytest.mark.parametrize(
    "change", [("What it does", "What else"), ("# why", ""), ('"""What the limit is for."""', ""), ("\n\n", "\n\n\n")]
)
def test_a_name_does_not_change_with_what_the_code_says(change: tuple[str, str]) -> None:
    assert code_of(CODE.replace(*change)) == code_of(CODE)


@pytest.mark.parametrize("change", [("LIMIT = 3", "LIMIT = 4"), ("> LIMIT", ">= LIMIT"), ("text[:LIMIT]", '"…"')])
def test_a_name_changes_with_what_the_code_does(change: tuple[str, str]) -> None:
    assert code_of(CODE.replace(*change)) != code_of(CODE)


@pytest.mark.parametrize("name", sorted(families()))
def test_formats_and_tokenizers_decide_and_networks_do_not(name: str) -> None:
    """Wherever in the folder of families they stand."""
    family = families()[name]
    files = {str(file) for file in deciding_files("lit_sft.data.encode", family, Belle)}
    assert sys.modules[family.__module__].__file__ in files
    assert any("data/encode.py" in file for file in files)
    assert any("corpora/_reading.py" in file for file in files)
    assert any("conversation.py" in file for file in files)
    assert any(word in file for file in files for word in ("/tokenizer", "sentencepiece", "native/prompts"))
    assert not any(word in file for file in files for word in ("network.py", "weights", "workers", "/stages/", "cli"))


MOUNTINFO = """21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 21 0:40 / /home rw shared:1 - nfs4 server:/home rw
31 30 0:41 / /home/a\\040b/local rw - xfs /dev/vdb rw
32 21 0:42 / /var/tmp rw - {var_tmp} x rw
"""


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def write(text: str) -> None:
        (tmp_path / "mountinfo").write_text(text)
        monkeypatch.setattr(cache_place, "MOUNTS", tmp_path / "mountinfo")

    return write


def test_the_file_system_is_that_of_the_nearest_mount(mounts: Any) -> None:
    mounts(MOUNTINFO.format(var_tmp="ext4"))
    places = ["/", "/home", "/home/me/.cache/x", "/homes", "/home/a b/local/x"]
    assert [file_system(Path(place)) for place in places] == ["ext4", "nfs4", "nfs4", "ext4", "xfs"]


def test_a_home_folder_on_the_network_is_not_where_the_cache_lies(
    tmp_path: Path, mounts: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cache_place, "LOCAL_PLACES", (tmp_path / "net", tmp_path / "disk"))
    for name in ("home", "net", "disk"):
        (tmp_path / name).mkdir()
    mounts(
        f"21 1 0:1 / / rw - ext4 x rw\n22 21 0:2 / {tmp_path}/home rw - nfs x rw\n"
        f"23 21 0:3 / {tmp_path}/net rw - lustre x rw\n"
    )
    assert cache_folder(None) == tmp_path / "disk" / f"lit_sft-{os.getuid()}"
    assert "lies on a network file system (nfs): this machine uses" in caplog.text
    assert cache_folder(str(tmp_path / "disk")) == tmp_path / "disk"
    monkeypatch.setattr(cache_place, "LOCAL_PLACES", (tmp_path / "net",))
    assert cache_folder(None) == tmp_path / "home" / "lit_sft" / platform.node()


def test_in_a_folder_of_all_machines_each_has_its_own(
    tmp_path: Path, mounts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts("21 1 0:1 / / rw - nfs4 x rw\n")
    folders = []
    for name in ("node-1", "node-2"):
        monkeypatch.setattr(platform, "node", lambda name=name: name)
        folders.append(cache_folder(str(tmp_path)))
        assert cache_folder(str(folders[-1])) == folders[-1]
    assert folders == [tmp_path / "node-1", tmp_path / "node-2"]


def test_a_folder_that_somebody_else_has_prepared_is_not_used(
    tmp_path: Path, mounts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts(f"21 1 0:1 / / rw - ext4 x rw\n22 21 0:2 / {tmp_path}/home rw - nfs x rw\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cache_place, "LOCAL_PLACES", (tmp_path,))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"lit_sft-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    assert cache_folder(None) == tmp_path / "home" / "lit_sft" / platform.node()


def write_bytes(file: Path, size: int) -> None:
    file.write_bytes(bytes(size))


def fill(cache: Path, ages: dict[str, float], size: int = 10) -> None:
    """Folders that were last used so many days ago."""
    for name, days in ages.items():
        folder = build_once(cache / name, lambda partial: write_bytes(partial / "file", size))
        for path in (folder, folder.with_name(folder.name + ".lock")):
            os.utime(path, (time.time() - days * DAY,) * 2)


def names(cache: Path) -> set[str]:
    return {f"{path.parent.name}/{path.name}" for kind in cache_pruning.KINDS for path in (cache / kind).glob("*")}


def test_what_nobody_has_used_for_long_is_removed_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fill(tmp_path, {"records/a": 100, "scans/b": 91, "tokens/c": 89, "tokens/d": 0})
    prune(tmp_path)
    assert names(tmp_path) == {"tokens/c", "tokens/c.lock", "tokens/d", "tokens/d.lock"}
    assert f"removed 2 of 4 entries (0.0 MB) from the cache {tmp_path}: not used for 90 days" in caplog.text
    fill(tmp_path, {"records/a": 100})
    prune(tmp_path)  # once a day
    assert "records/a" in names(tmp_path)


def test_of_a_cache_that_is_too_large_the_oldest_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_pruning, "MAX_BYTES", 120_000)
    fill(tmp_path, {"tokens/a": 30, "tokens/b": 40, "tokens/c": 20, "tokens/d": 1}, size=50_000)
    prune(tmp_path)
    assert names(tmp_path) == {"tokens/c", "tokens/c.lock", "tokens/d", "tokens/d.lock"}


def test_what_was_used_this_week_is_kept_however_large_the_cache_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_pruning, "MAX_BYTES", 10_000)
    fill(tmp_path, {"tokens/a": 8, "tokens/b": 6, "tokens/c": 1}, size=50_000)
    prune(tmp_path)
    assert names(tmp_path) == {"tokens/b", "tokens/b.lock", "tokens/c", "tokens/c.lock"}


def test_what_is_used_again_counts_as_new(tmp_path: Path) -> None:
    fill(tmp_path, {"records/a": 100})
    build_once(tmp_path / "records" / "a", lambda partial: pytest.fail("it is there"))
    prune(tmp_path)
    assert "records/a" in names(tmp_path)


def test_nothing_is_removed_while_another_process_uses_the_cache(tmp_path: Path) -> None:
    fill(tmp_path, {"records/a": 100})
    other = "import sys; from lit_sft.data.cache_pruning import hold_cache; from pathlib import Path; "
    other += "hold_cache(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    (tmp_path / "pruned").touch()
    process = subprocess.Popen(
        [sys.executable, "-c", other, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    (tmp_path / "pruned").unlink()
    hold_cache(tmp_path)
    assert "records/a" in names(tmp_path)
    process.communicate("")
    os.close(cache_pruning._held.pop(tmp_path))
    hold_cache(tmp_path)
    assert "records/a" not in names(tmp_path)
    with (tmp_path / "in-use").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # and now this process holds it
