"""Tiny checkpoints to damage, load and save."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lit_sft import open_checkpoint
from lit_sft.families._base import Checkpoint, TinySize, families
from lit_sft.families._tiny import demo_texts

# Widths that bitsandbytes can pack on a CPU.
SIZE = TinySize(hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, vocab_size=1400, context_length=128)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    written: dict[str, Path] = {}

    def folder_of(family: str) -> Path:
        if family not in written:
            written[family] = tmp_path_factory.mktemp(family)
            torch.manual_seed(0)
            families()[family].write_tiny(written[family], demo_texts(), SIZE)
        return written[family]

    return folder_of


@pytest.fixture
def folder(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    """A Baichuan-7B of one's own to damage, its weights in one pytorch_model.bin."""
    return Path(shutil.copytree(tiny("baichuan-7b"), tmp_path / "checkpoint"))


@pytest.fixture(params=sorted(families()))
def checkpoint(request: pytest.FixtureRequest, tiny: Callable[[str], Path], tmp_path: Path) -> Checkpoint:
    """A checkpoint of each family, in a folder of one's own."""
    return open_checkpoint(shutil.copytree(tiny(request.param), tmp_path / "checkpoint"), request.param)
