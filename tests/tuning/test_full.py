"""Full tuning takes the dropout of adapters that an overlay, or a configuration it changes, says for every tuning."""

import pytest

from lit_sft.tuning.full import Full


def test_full_tuning_has_no_dropout_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    Full(dropout=0.0)
    assert not caplog.records
    assert Full(dropout=0.1).footprint(["q_proj"]).dropout == 0
    assert "no adapters to drop inputs of" in caplog.text
