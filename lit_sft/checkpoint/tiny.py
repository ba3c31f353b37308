"""Tiny checkpoints: the architecture, tensor names and tokenizer of a family, small and random."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from lit_sft.errors import ConfigError, DataError
from lit_sft.families._base import Family, TinySize
from lit_sft.files import whole_folder


def write_tiny(folder: Path, family: type[Family], texts: list[str], size: TinySize, seed: int) -> None:
    """A checkpoint of a family in `folder`, which does not exist until it is complete.

    Args:
        folder: Where to write.
        family: Which.
        texts: What the tokenizer is trained on.
        size: Of the network.
        seed: Of the weights.

    Raises:
        ConfigError: If it cannot be written, or no tokenizer of that size can be trained on the texts.
    """
    import torch

    torch.manual_seed(seed)
    try:
        with whole_folder(folder) as partial:
            family.write_tiny(partial, texts, size)
    except OSError as error:
        raise ConfigError(f"--output {folder} cannot be written: {error.strerror}") from None
    except RuntimeError as error:  # sentencepiece says in its own words that the vocabulary is too small
        raise ConfigError(
            f"no tokenizer of {size.vocab_size} pieces can be trained: {error}. Raise vocab_size"
        ) from None


def demo_texts() -> list[str]:
    """What is said in the demo corpus."""
    with resources.as_file(resources.files("lit_sft.demo") / "belle_train.json") as file:
        return texts_in(file)


def texts_in(file: Path) -> list[str]:
    """Plain lines, or the values of JSON Lines.

    Raises:
        DataError: If the file is missing, or not UTF-8.
    """
    if not file.is_file():
        raise DataError(f"text to train the tokenizer on not found: {file}")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise DataError(f"{file} is not UTF-8; convert it, for example with iconv") from None
    texts: list[str] = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            record = line
        texts += [value for value in record.values() if isinstance(value, str)] if isinstance(record, dict) else [line]
    return texts
