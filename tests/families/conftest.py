"""Checkpoints of one's own, to damage, load and save."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_sft import open_checkpoint
from lit_sft.families._base import Checkpoint, families


@pytest.fixture
def folder(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    """A Baichuan-7B of one's own to damage, its weights in one pytorch_model.bin."""
    return Path(shutil.copytree(tiny("baichuan-7b"), tmp_path / "checkpoint"))


@pytest.fixture(params=sorted(families()))
def checkpoint(request: pytest.FixtureRequest, tiny: Callable[[str], Path], tmp_path: Path) -> Checkpoint:
    """A checkpoint of each family, in a folder of one's own."""
    return open_checkpoint(shutil.copytree(tiny(request.param), tmp_path / "checkpoint"), request.param)
