"""The C++ programs, built once, and folders for them."""

import json
import os
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]


def build_folder() -> Path:
    return Path(os.environ.get("LIT_SFT_CPP_BUILD", ROOT / "build" / "cpp"))


def alone(*command: str) -> None:
    """A command that installs or builds, one test process after the other; skips where packages are missing."""
    build_folder().mkdir(parents=True, exist_ok=True)
    with FileLock(build_folder() / "tests.lock"):
        made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if made.returncode:
        said = made.stdout + made.stderr
        needed = [line.strip() for line in said.splitlines() if "apt-get install" in line]
        if needed:
            pytest.skip(needed[0])
        raise AssertionError(said[-4000:])


def bring(tool: str) -> None:
    """Installs a tool beside the packages that building needs."""
    alone("cpp/packages.sh", tool)


@cache
def binary(name: str = "lit-sft") -> Path:
    """A program, built by `make cpp`; skips where its packages are not there and cannot be installed."""
    alone("make", "cpp", f"CPP_BUILD={build_folder()}")
    return build_folder() / name


def run(verb: str, folder: Path, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a verb makes of JSON lines."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    done = subprocess.run([binary(), verb, "--model", folder], input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def refused(verb: str, folder: Path, line: str = '{"text": "a"}\n') -> str:
    """What a verb says of a folder or a line that it cannot use."""
    done = subprocess.run([binary(), verb, "--model", folder], input=line, capture_output=True, text=True)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr
