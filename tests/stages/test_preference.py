"""Preference optimization: objectives through the whole stage, references, guards, and what a cut does not change."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from rankings import judged, ranked, written
from streams import trainer_of

from lit_sft.checkpoint.opening import open_checkpoint
from lit_sft.conversation import IGNORE_INDEX
from lit_sft.data.batch import PairBatch
from lit_sft.data.preference import PreferenceData
from lit_sft.errors import ConfigError, DataError, TrainingError
from lit_sft.objectives.dpo import DPO
from lit_sft.objectives.ipo import IPO
from lit_sft.objectives.kto import KTO
from lit_sft.objectives.orpo import ORPO
from lit_sft.objectives.simpo import SimPO
from lit_sft.objectives.wpo import WPO
from lit_sft.stages._mismatched import mismatched
from lit_sft.stages._reference import StoredReference, _keys
from lit_sft.stages.preference import Preference
from lit_sft.stages.schedules import Constant
from lit_sft.tuning.full import Full
from lit_sft.tuning.lora import LoRA
from lit_sft.tuning.qlora import QLoRA

Tiny = Callable[[str], Path]

PAIRS = [ranked(f"question {i}", f"please {i % 5}", f"go away {i % 3}" + "!" * (i % 4), system="s") for i in range(16)]


def data_of(tmp_path: Path, checkpoint: Path, records: list[dict[str, Any]] = PAIRS, **options: Any) -> PreferenceData:
    text = open_checkpoint(str(checkpoint))
    defaults = {"max_length": min(384, text.context_length), "micro_batch_size": 2, "validation_fraction": 0.25}
    return PreferenceData(
        text, [written(tmp_path / "pairs.jsonl", records)], **{"cache": str(tmp_path / "cache"), **defaults, **options}
    )


def stage_of(checkpoint: Path, tuning: Any, objective: Any = None, lr: float = 5e-3) -> Preference:
    return Preference(
        str(checkpoint),
        tuning,
        objective=objective or DPO(),
        optimizer=lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=0.0),
        schedule=Constant(),
    )


class Validations(Callback):
    """What each validation has measured; the first is that before training."""

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.found.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def trained(stage: Preference, data: PreferenceData, **options: Any) -> list[dict[str, float]]:
    """Validations of a short training."""
    kept = Validations()
    short = {"default_root_dir": data.cache, "max_epochs": 2, "limit_val_batches": 1.0, "num_sanity_val_steps": -1}
    trainer_of(kept, **{**short, **options}).fit(stage, datamodule=data)
    return kept.found


def first_batch(data: PreferenceData) -> PairBatch:
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, PairBatch)
    return batch


def test_log_probabilities_are_those_of_the_whole_softmax(checkpoint: Any, tmp_path: Path) -> None:
    stage = stage_of(checkpoint.path, LoRA(rank=2))
    stage.configure_model()
    batch = first_batch(data_of(tmp_path, checkpoint.path, packing=True, micro_batch_size=1))
    with torch.no_grad():
        found = stage.log_probs(batch)
        expected = []
        for row in range(len(batch.input_ids)):
            for number in range(1, int(batch.segment_ids[row].max()) + 1):
                own = batch.segment_ids[row] == number
                ids, labels = batch.input_ids[row][own], batch.labels[row][own]
                logps = stage.causal_lm(input_ids=ids[None]).logits[0].float().log_softmax(-1)
                places = (labels != IGNORE_INDEX).nonzero().squeeze(1)
                expected.append(logps[places - 1, labels[places]].sum())
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("tuning", [LoRA(rank=2), QLoRA(rank=2), Full()], ids=["lora", "qlora", "full"])
def test_dpo_begins_at_ln_2_and_prefers_what_was_chosen(tiny: Tiny, tmp_path: Path, tuning: Any) -> None:
    stage = stage_of(tiny("baichuan-7b"), tuning, lr=1e-3 if isinstance(tuning, Full) else 5e-3)
    before, *_, after = trained(stage, data_of(tmp_path, tiny("baichuan-7b")))
    assert before["val/loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert before["val/rewards/margins"] == pytest.approx(0, abs=1e-3)
    assert after["val/loss"] < before["val/loss"] - 0.02
    assert after["val/rewards/accuracies"] == 1


@pytest.mark.parametrize(
    "objective",
    [IPO(), SimPO(), ORPO(), KTO(baseline="none"), WPO(), ORPO(likelihood_of="prompt")],
    ids=lambda objective: type(objective).__name__,
)
def test_every_kind_of_objective_trains(tiny: Tiny, tmp_path: Path, objective: Any) -> None:
    before, *_, after = trained(
        stage_of(tiny("baichuan-7b"), LoRA(rank=2), objective), data_of(tmp_path, tiny("baichuan-7b"))
    )
    assert after["val/loss"] < before["val/loss"]


def test_full_tuning_without_stored_log_probabilities_is_told_that_it_has_no_reference(
    tiny: Tiny, tmp_path: Path
) -> None:
    checkpoint = tiny("baichuan-7b")
    stage = stage_of(checkpoint, Full())
    stage.configure_model()
    with pytest.raises(ConfigError, match="Full keeps no model from before training"):
        stage.judge(first_batch(data_of(tmp_path, checkpoint)))


def test_likelihood_of_prompts_runs_the_network_once(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = tiny("baichuan-7b")
    batch = first_batch(data_of(tmp_path, checkpoint))
    stage = stage_of(checkpoint, LoRA(rank=2), ORPO(likelihood_of="prompt"))
    stage.trainer = trainer_of(default_root_dir=tmp_path)
    stage.configure_model()
    calls: list[Any] = []
    stage.causal_lm.get_decoder().register_forward_hook(lambda *_: calls.append(1))
    stage(batch)
    assert len(calls) == 1


def test_judged_answers_train_kto_and_nothing_else(tiny: Tiny, tmp_path: Path) -> None:
    records = [judged(f"question {i}", *(("please", True) if i % 2 else ("go away", False))) for i in range(16)]
    data = data_of(tmp_path, tiny("baichuan-7b"), records)
    before, *_, after = trained(stage_of(tiny("baichuan-7b"), LoRA(rank=2), KTO(baseline="none")), data)
    assert after["val/rewards/margins"] > before["val/rewards/margins"]
    with pytest.raises(ConfigError, match="judge single answers, which KTO learns from"):
        stage_of(tiny("baichuan-7b"), LoRA(rank=2)).check_first_batch(first_batch(data))


def test_the_baseline_of_kto_is_what_the_policy_thinks_of_answers_to_other_prompts(tiny: Tiny, tmp_path: Path) -> None:
    stage = stage_of(tiny("baichuan-7b"), LoRA(rank=2), KTO(baseline="mismatched"))
    records = [judged(f"question {i}", "please" if i % 8 else "go away", bool(i % 8)) for i in range(16)]
    data = data_of(tmp_path, tiny("baichuan-7b"), records, micro_batch_size=4)
    before, *_ = trained(stage, data)
    assert before["val/kl"] == pytest.approx(0, abs=1e-4)
    batch = first_batch(data)
    others = mismatched(batch, 128)
    assert others is not None
    with torch.no_grad():
        kl = stage.means(*stage(batch).by_group.sum(0).tolist())["kl"]
        ratios = stage.log_probs(others)
        with stage.tuning.reference_of(stage.model):
            ratios = ratios - stage.log_probs(others)
    assert kl == pytest.approx(float(ratios.mean()), rel=1e-4)
    assert kl > 0
    with pytest.raises(ConfigError, match="Set baseline: none"):
        stage_of(tiny("baichuan-7b"), Full(), KTO(baseline="mismatched"))


def test_an_answer_behind_another_prompt_is_that_of_the_record_before(tiny: Tiny, tmp_path: Path) -> None:
    records = [ranked("a", "one", "two"), ranked("b", "three", "four"), ranked("a", "five", "six")]
    data = data_of(tmp_path, tiny("baichuan-7b"), records, validation_fraction=0.0, micro_batch_size=8)
    batch = first_batch(data)
    others = mismatched(batch, 128)
    assert others is not None
    tokenizer = data.tokenizer

    def taken_apart(ids: torch.Tensor, labels: torch.Tensor, own: torch.Tensor) -> tuple[str, str]:
        is_answer = labels != IGNORE_INDEX
        return tokenizer.decode(ids[own & ~is_answer]), tokenizer.decode(ids[own & is_answer])

    first: dict[str, tuple[str, str]] = {}
    number = 0
    for row, segments in zip(zip(batch.input_ids, batch.labels, strict=True), batch.segment_ids, strict=True):
        for segment in range(1, int(segments.max()) + 1):
            first.setdefault(batch.sources[int(batch.sequences[number])], taken_apart(*row, segments == segment))
            number += 1
    expected = {
        source: (first[source][0], first[before][1])
        for before, source in zip([batch.sources[-1], *batch.sources], batch.sources, strict=False)
        if first[source][0] != first[before][0]
    }
    found = {
        source: taken_apart(ids, labels, segments == 1)
        for source, ids, labels, segments in zip(
            others.sources, others.input_ids, others.labels, others.segment_ids, strict=True
        )
    }
    assert found == expected
    assert len(found) == 2
    assert (
        mismatched(first_batch(data_of(tmp_path, tiny("baichuan-7b"), records[:1], validation_fraction=0.0)), 128)
        is None
    )


def test_the_reference_is_the_adapter_that_training_starts_from(tiny: Tiny, tmp_path: Path) -> None:
    first = stage_of(tiny("baichuan-7b"), LoRA(rank=2))
    trained(first, data_of(tmp_path, tiny("baichuan-7b")))
    folder = first.export(tmp_path / "run", first.state_dict())
    second = stage_of(tiny("baichuan-7b"), LoRA(adapter=str(folder)), lr=5e-4)
    before, *_, after = trained(second, data_of(tmp_path, tiny("baichuan-7b")))
    assert before["val/loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert after["val/loss"] < before["val/loss"]


def test_full_tuning_asks_the_reference_once_and_keeps_what_it_said(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = tiny("baichuan-7b")
    data = data_of(tmp_path, checkpoint)
    stage = stage_of(checkpoint, Full(), lr=1e-3)
    trained(stage, data)
    (file,) = (tmp_path / "cache" / "reference").glob("*/logps.json")
    asked = file.stat().st_mtime_ns
    assert stage.stored_reference is not None
    batch = first_batch(data)
    frozen = stage_of(checkpoint, LoRA(rank=2))
    frozen.configure_model()
    with torch.no_grad():
        torch.testing.assert_close(stage.stored_reference.of(batch), frozen.log_probs(batch), rtol=1e-4, atol=1e-3)
    trained(stage_of(checkpoint, Full(), lr=1e-3), data_of(tmp_path, checkpoint))
    assert file.stat().st_mtime_ns == asked


def test_stored_log_probabilities_that_are_damaged_are_named(tiny: Tiny, tmp_path: Path) -> None:
    batch = first_batch(data_of(tmp_path, tiny("baichuan-7b")))
    rows = [[corpus, source, [-1.5, -2.5]] for corpus, source in _keys(batch)]
    file = tmp_path / "logps.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    assert StoredReference.read(file).of(batch).tolist() == [-1.5, -2.5] * len(rows)
    (corpus, source, _), *others = rows
    for content in (
        "", json.dumps(rows)[:-9], "[" * 100_000, "7", "null", '["abc"]', "[[1, 2]]", json.dumps([[corpus, source, 7]]),
        json.dumps([[[corpus], source, [1.0, 2.0]]]), json.dumps([[corpus, source, ["x", None]], *others]),
        "[]", json.dumps(others), json.dumps([[corpus, source, [-1.5]], *others]),
        json.dumps([[corpus, source, [-1.5] * 3], *others]),
    ):  # fmt: skip
        file.write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match=r"in .*logps\.json are damaged\. Remove it") as refused:
            StoredReference.read(file).of(batch)
        assert "\n" not in str(refused.value)


def test_a_policy_that_is_not_its_reference_or_does_not_move_is_refused(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = stage_of(tiny("baichuan-7b"), Full(), lr=1e-3)
    data = data_of(tmp_path, tiny("baichuan-7b"))

    class Shift(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            with torch.no_grad():
                pl_module.causal_lm.get_output_embeddings().weight.mul_(1.5)

    with pytest.raises(TrainingError, match="the reference is not the model that training starts from"):
        trainer_of(Shift(), max_epochs=1, default_root_dir=tmp_path).fit(stage, datamodule=data)
    with pytest.raises(TrainingError, match="nothing trains"):
        trained(stage_of(tiny("baichuan-7b"), LoRA(rank=2), lr=0.0), data_of(tmp_path, tiny("baichuan-7b")))
    short = {"precision": "bf16-mixed", "max_epochs": 1}
    trained(stage_of(tiny("baichuan-7b"), LoRA(rank=2), lr=0.0), data_of(tmp_path, tiny("baichuan-7b")), **short)
    assert "nothing trains" in caplog.text


def test_neither_packing_nor_the_cut_into_micro_batches_changes_a_step(tiny: Tiny, tmp_path: Path) -> None:
    records = [
        ranked("q", "please", "go away"),
        ranked("qq", "thank you very much", "no"),
        ranked("qqq", "yes", "never"),
    ]
    gradients = []
    for options in ({"micro_batch_size": 3}, {"micro_batch_size": 1}, {"packing": True, "micro_batch_size": 1}):
        torch.manual_seed(0)
        stage = stage_of(tiny("baichuan-7b"), LoRA(rank=2), DPO(sft_weight=0.2))
        stage.configure_model()
        data = data_of(tmp_path, tiny("baichuan-7b"), records, validation_fraction=0.0, **options)
        data.setup("fit")
        totals = [stage(batch) for batch in data.train_dataloader()]
        torch.stack([total.loss for total in totals]).sum().backward()
        gradients.append(stage.gradient_norm() / sum(total.by_group[:, 1].sum() for total in totals))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients[2], gradients[0], rtol=1e-5, atol=1e-6)


def test_swapped_sides_turn_the_margin_and_equal_answers_leave_it(tiny: Tiny, tmp_path: Path) -> None:
    stage = stage_of(tiny("baichuan-7b"), LoRA(rank=2))
    trained(stage, data_of(tmp_path, tiny("baichuan-7b")))
    batch = first_batch(data_of(tmp_path, tiny("baichuan-7b")))

    def margin(pairs: torch.Tensor) -> tuple[float, float]:
        with torch.no_grad():
            _, sums = stage(replace(batch, pairs=pairs))
        means = stage.means(*sums.sum(0).tolist())
        return means["rewards/margins"], means["loss"]

    forward, _ = margin(batch.pairs)
    backward, _ = margin(batch.pairs.flip(1))
    assert forward == pytest.approx(-backward, rel=1e-5)
    assert margin(batch.pairs[:, :1].expand(-1, 2)) == pytest.approx((0, math.log(2)))


def test_dropout_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"dropout is 0\.1"):
        stage_of(tiny("baichuan-7b"), LoRA(dropout=0.1))
