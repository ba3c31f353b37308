"""What is measured of each corpus, and steps without data."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from streams import Notes, batches_of, example, fit, stream_of, trainer_of
from torch.optim import SGD

from lit_sft.conversation import Example
from lit_sft.data.batch import Batch
from lit_sft.data.collate import collate
from lit_sft.errors import TrainingError
from lit_sft.losses.cross_entropy import TokenTotals
from lit_sft.stages.schedules import Constant
from lit_sft.stages.sft import SFT
from lit_sft.tuning.full import Full

CORPORA = ["a", "b", "c"]
A, B = [example(1), example(2)], [example(3, corpus=1), example(5, corpus=1)]
NOTHING = collate([], 0, corpora=CORPORA)


@pytest.fixture
def stage(tiny_folder: Path) -> SFT:
    return stage_of(tiny_folder)


def stage_of(folder: Path, lr: float = 0.0) -> SFT:
    return SFT(
        checkpoint=str(folder),
        tuning=Full(),
        optimizer=lambda groups: SGD(groups, lr=lr),
        schedule=Constant(0.0),
    )


def batch_of(*rows: list[Example]) -> Batch:
    return collate(rows, 0, corpora=CORPORA)


def measure(stage: SFT, examples: list[Example]) -> tuple[float, float, float]:
    """Loss, tokens and correct tokens of examples that stand alone."""
    stage.configure_model()
    with torch.no_grad():
        loss, num_tokens, num_correct = stage(batch_of(*([e] for e in examples))).by_group.sum(0).tolist()
    return loss / num_tokens, num_tokens, num_correct


def logged(stage: SFT, batches: list[Batch], **options: Any) -> dict[str, dict[int | None, float]]:
    """Value by step of everything that training logs."""
    notes = Notes()
    fit(stage, stream_of(batches), logger=notes, max_epochs=1, **options)
    return {name: dict(values) for name, values in notes.found.items()}


@pytest.mark.parametrize(
    "batches",
    [
        [batch_of([*A, *B])],
        [batch_of([A[0], B[0]], [B[1], A[1]])],
        [batch_of([A[0]], [A[1]]), batch_of([B[0]], [B[1]])],
    ],
    ids=["one-row", "mixed-rows", "accumulated"],
)
def test_a_step_has_the_loss_of_each_corpus_and_of_all(stage: SFT, batches: list[Batch]) -> None:
    a, num_a, _ = measure(stage, A)
    b, num_b, _ = measure(stage, B)
    found = logged(stage, batches, accumulate_grad_batches=len(batches))
    assert found["train/loss/a"] == {0: pytest.approx(a, rel=1e-5)}
    assert found["train/loss/b"] == {0: pytest.approx(b, rel=1e-5)}
    assert found["train/loss"] == {0: pytest.approx((a * num_a + b * num_b) / (num_a + num_b), rel=1e-5)}
    assert "train/loss/c" not in found


def test_a_step_without_tokens_of_a_corpus_logs_nothing_of_it(stage: SFT) -> None:
    found = logged(stage, [batch_of(A), batch_of(B), batch_of(A), batch_of([*A, *B])])
    assert list(found["train/loss/a"]) == [0, 2, 3]
    assert list(found["train/loss/b"]) == [1, 3]


def test_corpora_are_logged_as_often_as_the_total(stage: SFT) -> None:
    found = logged(stage, [batch_of([*A, *B])] * 5, log_every_n_steps=2)
    assert list(found["train/loss/a"]) == list(found["train/loss"]) == [1, 3]


def test_one_corpus_has_its_totals_only(stage: SFT) -> None:
    assert {name for name in logged(stage, batches_of(2)) if name.count("/") > 1} == set()


@pytest.mark.parametrize("split", ["val", "test"])
def test_held_out_metrics_of_each_corpus_and_of_all(stage: SFT, split: str) -> None:
    expected = {}
    for suffix, examples in (("", A + B), ("/a", A), ("/b", B)):
        loss, num_tokens, num_correct = measure(stage, examples)
        expected[f"{split}/loss{suffix}"] = loss
        expected[f"{split}/perplexity{suffix}"] = math.exp(loss)
        expected[f"{split}/token_accuracy{suffix}"] = num_correct / num_tokens
    trainer = trainer_of()
    run = trainer.validate if split == "val" else trainer.test
    (found,) = run(stage, stream_of([batch_of([A[0], B[0]]), batch_of([B[1]], [A[1]]), NOTHING]), verbose=False)
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_batch_of_nothing_changes_no_step(tiny_folder: Path) -> None:
    def train(*batches: Batch) -> tuple[SFT, float]:
        stage = stage_of(tiny_folder, lr=0.1)
        trainer = fit(stage, stream_of(batches), max_epochs=1, accumulate_grad_batches=len(batches))
        return stage, float(trainer.callback_metrics["train/loss"])

    alone, loss = train(batch_of(A))
    beside, loss_beside = train(batch_of(A), NOTHING)
    assert loss_beside == loss
    for (name, weight), expected in zip(beside.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-7, msg=name)


def test_a_step_of_nothing_leaves_the_weights_and_logs_no_loss(tiny_folder: Path) -> None:
    stage = stage_of(tiny_folder, lr=0.1)
    stage.configure_model()
    before = [parameter.clone() for parameter in stage.parameters()]
    found = logged(stage, [NOTHING])
    assert not {name for name in found if name.startswith("train/")}
    assert all(torch.equal(*pair) for pair in zip(before, stage.parameters(), strict=True))


def test_a_harmful_loss_is_not_blamed_on_a_batch_of_nothing(tiny_folder: Path) -> None:
    class Broken(SFT):
        def forward(self, batch: Batch) -> TokenTotals:
            totals = super().forward(batch)
            return totals._replace(by_group=totals.by_group * float("nan")) if batch.num_tokens else totals

    stage = Broken(checkpoint=str(tiny_folder), tuning=Full())
    with pytest.raises(TrainingError, match="Records of the step: stream:1, stream:2. "):
        fit(stage, stream_of([batch_of(A), NOTHING]), max_epochs=1, accumulate_grad_batches=2)
