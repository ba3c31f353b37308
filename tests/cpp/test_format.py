"""cpp/ is written as clang-format writes it. clang-tidy takes too long for a test: `make cpp-lint`."""

import subprocess

import pytest
from binaries import ROOT, bring

pytestmark = pytest.mark.slow  # the tool is installed first


def test_sources_are_formatted() -> None:
    bring("clang-format")
    said = subprocess.run(["clang-format", "--version"], capture_output=True, text=True, check=True).stdout
    if " version 14." not in said:
        pytest.skip(f"sources are written by clang-format 14, and others write otherwise; this is {said}")
    sources = [file for kind in ("cpp", "h") for file in (ROOT / "cpp").rglob(f"*.{kind}")]
    done = subprocess.run(["clang-format", "--dry-run", "--Werror", *sources], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:2000]
