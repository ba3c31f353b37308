"""The options that every data module has, and the values they may have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_sft.errors import ConfigError

if TYPE_CHECKING:
    from lit_sft.data._base import CorpusData


def check_options(data: CorpusData) -> None:
    """Refuse what no data could be read with.

    Raises:
        ConfigError: With the option and what it may be.
    """
    if not data.corpora:
        raise ConfigError(
            "data.corpora is empty; name at least one, such as {class_path: Belle, init_args: {path: ...}}"
        )
    if data.max_length > data.text.context_length:
        raise ConfigError(
            f"data.max_length is {data.max_length}, but the model reads {data.text.context_length} tokens at most. "
            f"Set data.max_length to {data.text.context_length} or less"
        )
    if not 0 <= data.validation_fraction < 1:
        raise ConfigError(f"data.validation_fraction is {data.validation_fraction}; it must be at least 0 and below 1")
    if not 0 <= data.max_bad_fraction <= 1:
        raise ConfigError(f"data.max_bad_fraction is {data.max_bad_fraction}; it must be from 0 to 1")
    at_least = {
        "max_length": (data.max_length, 2),
        "micro_batch_size": (data.micro_batch_size, 1),
        "num_workers": (data.num_workers, 0),
        "seed": (data.seed, 0),
    }
    for name, (value, least) in at_least.items():
        if value < least:
            raise ConfigError(f"data.{name} is {value}; it must be at least {least}")
