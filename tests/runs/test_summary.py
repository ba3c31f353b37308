"""What is said of a run says of which step it is true."""

from pathlib import Path
from typing import Any

import pytest

from lit_sft.cli.summary import content_of
from lit_sft.errors import ConfigError
from lit_sft.runs.summary import one_line, render


def content(**changes: Any) -> dict[str, Any]:
    before, after = {"val/loss": 7.643}, {"val/loss": 7.507}
    measured = {"before": before, "before_step": 0, "after": after, "after_step": 18}
    return {"optimizer_steps": 18, "samples": [], **measured, **changes}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "18 steps, held-out loss 7.643 -> 7.507. See "),
        ({"after_step": 16}, "18 steps, held-out loss 7.643 -> 7.507 at step 16. See "),
        ({"after": {}, "after_step": 0}, "18 steps, held-out loss 7.643 before, not measured since. See "),
        ({"before": {}}, "18 steps, held-out loss 7.507. See "),
        ({"before": {}, "after": {}}, "18 steps. See "),
    ],
)
def test_the_last_line_of_a_fit_says_of_which_state_its_loss_is(changes: dict[str, Any], said: str) -> None:
    assert one_line(Path("runs/x"), content(**changes)).startswith(said)


def test_a_summary_shows_what_was_measured_before_where_nothing_was_since() -> None:
    lines = render(Path("runs/x"), content(after={}, after_step=0, ended_early="ended at 50% of the run")).splitlines()
    assert "  ended at 50% of the run" in lines
    assert "  held out              before   not since" in lines
    assert "  loss                   7.643           -" in lines


@pytest.mark.parametrize("damaged", ["", "{", "[]", "{}", "\xff"])
def test_a_damaged_summary_is_named_with_the_remedy(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "summary.json").write_text(damaged, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"summary\.json is damaged; remove it"):
        content_of(tmp_path)
