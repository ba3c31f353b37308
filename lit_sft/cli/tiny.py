"""The verb tiny: a small random checkpoint of any family."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from lit_sft.checkpoint.opening import find_family
from lit_sft.checkpoint.tiny import demo_texts, texts_in, write_tiny
from lit_sft.display import visible
from lit_sft.errors import CheckpointError, ConfigError
from lit_sft.families._base import TinySize

DEFAULT = TinySize()


def tiny(
    output: str,
    family: str = "baichuan-7b",
    text: str | None = None,
    seed: int = 42,
    hidden_size: int = DEFAULT.hidden_size,
    intermediate_size: int = DEFAULT.intermediate_size,
    num_layers: int = DEFAULT.num_layers,
    num_heads: int = DEFAULT.num_heads,
    vocab_size: int = DEFAULT.vocab_size,
    context_length: int = DEFAULT.context_length,
) -> None:
    """Make a small random checkpoint in the original on-disk layout, with a tokenizer trained on your text.

    Args:
        output: Folder to make; must not exist.
        family: Name of the model family.
        text: UTF-8 file that the tokenizer is trained on: plain lines, or JSON Lines, of which the values count.
            The demo corpus if not given.
        seed: Seed of the weights.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the feed-forward layer.
        num_layers: Number of blocks.
        num_heads: Attention heads; twice their number must divide `hidden_size`.
        vocab_size: Rows of the embedding; at most as many pieces of the tokenizer.
        context_length: Tokens the network can read at once.

    Raises:
        UserError: If the folder exists, the text is missing or the sizes do not fit together.
    """
    folder = Path(output)
    if folder.exists() or folder.is_symlink():
        raise CheckpointError(f"{folder} exists; give a folder that does not")
    size = TinySize(hidden_size, intermediate_size, num_layers, num_heads, vocab_size, context_length)
    _check(size)
    texts = texts_in(Path(text)) if text else demo_texts()
    write_tiny(folder, find_family(family), texts, size, seed)
    num_bytes = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{visible(output)}: {family}, {num_bytes / 1e6:.1f} MB in {len(list(folder.iterdir()))} files")  # noqa: T201


def _check(size: TinySize) -> None:
    for field in fields(size):
        if getattr(size, field.name) < 1:
            raise ConfigError(f"{field.name} must be at least 1")
    if size.hidden_size % (2 * size.num_heads):
        raise ConfigError(f"hidden_size {size.hidden_size} must be a multiple of twice num_heads {size.num_heads}")
