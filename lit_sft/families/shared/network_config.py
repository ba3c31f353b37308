"""config.json as the configuration of a network: of the right types, with sizes that a network can have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from transformers import CONFIG_MAPPING, PreTrainedConfig

from lit_sft.errors import CheckpointError, UserError

AnyConfig = TypeVar("AnyConfig", bound=PreTrainedConfig)

LARGEST = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "num_hidden_layers": 1000,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "max_position_embeddings": 1 << 30,
}
"""Sizes by transformers' names for them, each with what no network comes near: a larger one takes hours to refuse."""


def checked_config(file: Path, make: Callable[[], AnyConfig]) -> AnyConfig:
    """What `make` makes of config.json, without the reference to remote code that a saved copy must not ask for.

    Raises:
        CheckpointError: If a key has a value of the wrong type, or a size is none.
    """
    try:
        config = make()
    except UserError:
        raise
    except Exception as error:  # transformers validates with errors of its own and computes with the rest
        raise CheckpointError(f"{file} cannot be used: {said_by(error)}; correct it, or download it again") from error
    for name, largest in LARGEST.items():
        value: Any = getattr(config, name, None)
        # Some model types have a list, one for each layer, and some no value where another key decides.
        if value is None or (isinstance(value, list) and config.model_type in CONFIG_MAPPING):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
            key = config.attribute_map.get(name, name)
            raise CheckpointError(f"{file}: {key} is {value!r}; expected a whole number from 1 to {largest}")
    vars(config).pop("auto_map", None)
    return config


def said_by(error: BaseException) -> str:
    """What an error of a library says, in a line."""
    error = error.__cause__ or error
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:300]}" if said else type(error).__name__
