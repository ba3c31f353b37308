"""Full tuning takes the dropout that an overlay says for every tuning, if it is 0."""

import pytest

from lit_sft.errors import ConfigError
from lit_sft.tuning.full import Full


def test_full_tuning_takes_no_dropout_and_says_why() -> None:
    Full(dropout=0.0)
    with pytest.raises(ConfigError, match="no adapters to drop inputs of"):
        Full(dropout=0.1)
