"""Compare: what stands under before and after is the state, or the model, that was meant."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_sft.__main__ import main
from lit_sft.conversation import IGNORE_INDEX, Example
from lit_sft.data.collate import collate
from lit_sft.report.evaluation import _each_alone

pytestmark = pytest.mark.slow  # as a whole

WriteConfig = Callable[..., str]
Compare = Callable[..., dict[str, Any]]


def test_each_example_of_a_packed_batch_is_counted_alone() -> None:
    def example(length: int, source: str, corpus: int) -> Example:
        return Example([5] * length, [IGNORE_INDEX, *[5] * (length - 1)], source, corpus=corpus)

    rows = [[example(2, "a", 1), example(3, "b", 0)], [example(4, "c", 1)]]
    alone, corpora = _each_alone(collate(rows, 0, corpora=["X", "Y"]))
    assert corpora == ["Y", "X", "Y"]
    assert alone.corpora == ["a", "b", "c"]
    assert torch.where(alone.segment_ids > 0, alone.corpus_ids, -1).tolist() == [[0, 0, 1, 1, 1], [2, 2, 2, 2, -1]]


@pytest.fixture
def fitted(write_config: WriteConfig, tmp_path: Path) -> Callable[..., Path]:
    def fit(name: str, seed: int, tuning: dict[str, Any] | None = None) -> Path:
        model = {"tuning": tuning} if tuning else {}
        config = write_config(model=model, seed_everything=seed, name=name)
        # The same split whatever the seed, or the prompts would not be the same.
        assert main(["fit", "--config", config]) == 0
        (run,) = (tmp_path / "runs").glob(f"{name}-*")
        return run

    return fit


@pytest.fixture
def compared(tmp_path: Path) -> Compare:
    def compare(*options: str | Path) -> dict[str, Any]:
        report = tmp_path / "report"
        assert main(["compare", *map(str, options), "--count", "3", "--output", str(report)]) == 0
        found: dict[str, Any] = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
        rows = (report / "answers.jsonl").read_text(encoding="utf-8").splitlines()
        found["answers"] = [[json.loads(row)[side]["text"] for row in rows] for side in ("before", "after")]
        return found

    return compare


def sides(found: dict[str, Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Perplexity of the references, of what was held out, and the answers: before and after."""
    (perplexity,) = [entry for entry in found["metrics"] if entry["metric"] == "perplexity"]
    before, after = (
        (perplexity[name], found["forgetting"]["Belle"][name], found["answers"][number])
        for number, name in enumerate(("before", "after"))
    )
    return before, after


def test_before_and_after_are_the_states_and_models_that_were_named(
    fitted: Callable[..., Path], compared: Compare, tiny: Callable[[str], Path], tiny_folder: Path
) -> None:
    first, second = (
        fitted("first", 7),
        fitted("second", 7, {"class_path": "LoRA", "init_args": {"rank": 4, "alpha": 64}}),
    )
    base, tuned = sides(compared("--run", first))
    _, other = sides(compared("--run", second))
    assert base[0] > tuned[0] != other[0]

    # Two states of one model; two tunings, loaded one after the other; a model folder, which is the base.
    checkpoint = first / "checkpoints" / "last.ckpt"
    assert sides(compared("--run", first, "--before", checkpoint)) == (tuned, tuned)
    assert sides(compared("--run", second, "--before", first)) == (tuned, other)
    assert sides(compared("--run", first, "--before", tiny_folder)) == (base, tuned)

    # Another family reads other tokens of the same prompts.
    found = compared("--config", first / "config.yaml", "--before", first, "--after", tiny("chatglm2-6b"))
    assert sides(found)[0] == tuned
    assert sides(found)[1] != tuned
    assert found["about"]["Before"] == first.name
    assert "not the same before and after" in found["about"]["Tokens"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--after", "models/x"], "give a folder for the report with --output"),
        (["--after", "nowhere", "--output", "out"], "nowhere is not a checkpoint, nor a run with a"),
    ],
)
def test_a_side_that_is_not_there_is_one_line(
    options: list[str], message: str, write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--config", write_config(), *options]) == 2
    assert message in capsys.readouterr().err
