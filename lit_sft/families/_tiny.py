"""Tiny checkpoints: the architecture, tensor names and tokenizer of a family, small and random."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

from lit_sft.errors import CheckpointError, ConfigError, DataError
from lit_sft.families._base import TinySize, find_family


def tiny(output: str, text: str, family: str = "baichuan-7b", seed: int = 42, size: TinySize = TinySize()) -> None:  # noqa: B008
    """Make a small random checkpoint in the original on-disk layout, with a tokenizer trained on your text.

    Args:
        output: Folder to make; must not exist.
        text: UTF-8 file that the tokenizer is trained on: plain lines, or JSON Lines, of which the values count.
        family: Name of the model family.
        seed: Seed of the weights.
        size: Sizes of the network.

    Raises:
        UserError: If the folder exists, the text is missing or the sizes do not fit together.
    """
    import torch

    folder = Path(output)
    if folder.exists():
        raise CheckpointError(f"{folder} exists; give a folder that does not")
    text_file = Path(text)
    if not text_file.is_file():
        raise DataError(f"text to train the tokenizer on not found: {text_file}")
    _check(size)
    chosen = find_family(family)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    torch.manual_seed(seed)
    chosen.write_tiny(partial, _texts(text_file), size)
    partial.rename(folder)
    num_bytes = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {family}, {num_bytes / 1e6:.1f} MB in {len(list(folder.iterdir()))} files")  # noqa: T201


def _texts(file: Path) -> list[str]:
    texts: list[str] = []
    for line in file.read_text(encoding="utf-8-sig").split("\n"):
        try:
            record = json.loads(line)
        except ValueError:
            record = line
        texts += [value for value in record.values() if isinstance(value, str)] if isinstance(record, dict) else [line]
    return texts


def _check(size: TinySize) -> None:
    for field in fields(size):
        if getattr(size, field.name) < 1:
            raise ConfigError(f"size.{field.name} must be at least 1")
    if size.hidden_size % (2 * size.num_heads):
        raise ConfigError(f"size.hidden_size {size.hidden_size} must be a multiple of twice num_heads {size.num_heads}")
