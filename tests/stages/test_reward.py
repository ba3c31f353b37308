"""A reward model: which token is scored, what it learns, what is measured, what is written."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rankings import judged, ranked, written
from safetensors.torch import load_file
from streams import batches_of, trainer_of

from lit_sft.checkpoint.opening import open_checkpoint
from lit_sft.conversation import Message, Prompt
from lit_sft.data.batch import PairBatch
from lit_sft.data.preference import PreferenceData
from lit_sft.errors import CheckpointError, ConfigError
from lit_sft.rewards._base import Answered
from lit_sft.rewards._scoring import encode_answer
from lit_sft.rewards.trained import Trained
from lit_sft.stages.reward import Reward
from lit_sft.stages.schedules import Constant
from lit_sft.tuning._heads import ScalarHead
from lit_sft.tuning.full import Full
from lit_sft.tuning.lora import LoRA
from lit_sft.tuning.qlora import QLoRA

Tiny = Callable[[str], Path]

POLITE = [
    ranked(f"question {i}", f"please {i % 9} thank you", f"go away {i % 7}" + "!" * (i % 5), system="s")
    for i in range(48)
]


def data_of(tmp_path: Path, checkpoint: Path, records: list[dict[str, Any]] = POLITE, **options: Any) -> PreferenceData:
    text = open_checkpoint(str(checkpoint))
    options = {
        "max_length": min(384, text.context_length),
        "micro_batch_size": 4,
        "validation_fraction": 0.25,
        **options,
    }
    return PreferenceData(text, [written(tmp_path / "pairs.jsonl", records)], **options)


def first_batch(data: PreferenceData) -> PairBatch:
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, PairBatch)
    return batch


def test_the_score_is_that_of_the_last_token_alone_or_packed(checkpoint: Any, tmp_path: Path) -> None:
    stage = Reward(str(checkpoint.path), LoRA(rank=2))
    stage.configure_model()
    with torch.no_grad():
        packed = first_batch(data_of(tmp_path, checkpoint.path, packing=True))
        scores = stage.scores(packed)
        segments = [
            packed.input_ids[row][packed.segment_ids[row] == number]
            for row in range(len(packed.input_ids))
            for number in range(1, int(packed.segment_ids[row].max()) + 1)
        ]
        assert len(segments) == len(scores) > 2
        assert stage.head is not None
        for ids, score in zip(segments, scores, strict=True):
            hidden = stage.causal_lm.get_decoder()(input_ids=ids[None], use_cache=False).last_hidden_state
            torch.testing.assert_close(stage.head(hidden[0, -1:])[0], score, rtol=1e-4, atol=1e-5)


def test_a_base_that_does_not_train_keeps_no_head_of_the_vocabulary(tiny: Tiny) -> None:
    adapted, full = (Reward(str(tiny("baichuan-7b")), tuning) for tuning in (LoRA(rank=2), Full()))
    for stage in (adapted, full):
        stage.configure_model()
    assert not list(adapted.causal_lm.get_output_embeddings().parameters())
    assert len(list(full.causal_lm.get_output_embeddings().parameters())) == 1  # it is exported with the others


def trained(tmp_path: Path, checkpoint: Path, tuning: Any, **options: Any) -> Reward:
    """After some epochs on polite and rude answers."""
    stage = Reward(str(checkpoint), tuning, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2), schedule=Constant())
    trainer = trainer_of(max_epochs=6, default_root_dir=tmp_path, limit_val_batches=1.0, **options)
    trainer.fit(stage, datamodule=data_of(tmp_path, checkpoint))
    return stage


QUANTIZATION: dict[str, Any] = {"quant_type": "fp4", "double_quant": False}


@pytest.fixture(scope="module")
def learned(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reward]:
    """A reward model of each tuning, trained when first asked for; not to be changed."""
    stages: dict[str, Reward] = {}
    tunings: dict[str, Callable[[], Any]] = {
        "lora": lambda: LoRA(rank=4),
        "qlora": lambda: QLoRA(rank=4, **QUANTIZATION),
        "full": Full,
    }

    def of(tuning: str) -> Reward:
        if tuning not in stages:
            torch.manual_seed(0)
            stages[tuning] = trained(tmp_path_factory.mktemp(tuning), tiny("baichuan-7b"), tunings[tuning]())
        return stages[tuning]

    return of


@pytest.mark.parametrize("tuning", ["lora", "qlora", "full"])
def test_it_learns_which_answers_are_better(learned: Callable[[str], Reward], tuning: str) -> None:
    stage = learned(tuning)
    metrics = stage.trainer.callback_metrics
    assert metrics["val/accuracy"] == 1
    assert metrics["val/margin"] > 0.5
    assert metrics["val/loss"] < math.log(2)
    assert stage.statistics == {
        "accuracy": 1.0,
        "mean": float(metrics["val/mean_reward"]),
        "std": float(metrics["val/reward_std"]),
    }


def test_what_is_measured_is_counted_by_hand(tiny: Tiny, tmp_path: Path) -> None:
    records = [ranked("a", "longer answer", "short", margin=0.5), ranked("b", "x", "much longer", "middle")]
    stage = Reward(str(tiny("baichuan-7b")), LoRA(rank=2), centering=0.1)
    stage.configure_model()
    batch = first_batch(data_of(tmp_path, tiny("baichuan-7b"), records, validation_fraction=0.0, micro_batch_size=8))
    with torch.no_grad():
        scores, (loss, (sums,)) = stage.scores(batch).double(), stage(batch)
    found = stage.means(*sums.tolist())
    of_record = {batch.sources[record]: scores[batch.sequences == record] for record in range(len(batch.sources))}
    (first, second) = (of_record[source] for source in sorted(of_record))

    def pair(better: torch.Tensor, worse: torch.Tensor, margin: float = 0.0) -> torch.Tensor:
        return -torch.nn.functional.logsigmoid(better - worse - margin) + 0.1 * (better + worse) ** 2

    by_record = [
        pair(first[0], first[1], 0.5),
        (pair(second[0], second[1]) + pair(second[0], second[2]) + pair(second[1], second[2])) / 3,
    ]
    torch.testing.assert_close(loss.double(), by_record[0] + by_record[1], rtol=1e-4, atol=1e-5)
    assert found["loss"] == pytest.approx(float(sum(by_record)) / 2, rel=1e-4)
    assert found["accuracy_of_longer_wins"] == pytest.approx((1 + 1 / 3) / 2)
    everything = torch.cat([first, second])
    assert found["mean_reward"] == pytest.approx(float(everything.mean()), rel=1e-4)
    assert found["reward_std"] == pytest.approx(float(everything.std(unbiased=False)), rel=1e-3)
    right = [first[0] > first[1], second[0] > second[1], second[0] > second[2], second[1] > second[2]]
    assert found["accuracy"] == pytest.approx((float(right[0]) + sum(map(float, right[1:])) / 3) / 2)
    lengths = torch.tensor([len(answer) for answer in ("longer answer", "short", "x", "much longer", "middle")])
    assert -1 <= found["length_correlation"] <= 1
    assert len(lengths) == len(everything)


@pytest.mark.slow
def test_the_export_scores_as_the_run_did_and_is_refused_elsewhere(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learned: Callable[[str], Reward]
) -> None:
    stage = learned("lora")
    state = stage.state_dict()
    folder = stage.export(tmp_path / "run", state)
    about = json.loads((folder / "reward.json").read_text(encoding="utf-8"))
    assert about.keys() == {"family", "prompt_format", "base", "quantization", "accuracy", "mean", "std"}
    assert load_file(folder / "reward_head.safetensors")["weight"].dtype == torch.float32
    assert not any("head" in name for name in load_file(folder / "adapter_model.safetensors"))

    answers = [Answered([Message("user", "question 1")], text) for text in ("please thank you", "go away")]
    reward = Trained(str(tmp_path / "run"))
    better, worse = reward.score(answers)
    assert better is not None
    assert worse is not None
    assert better > 0 > worse
    sequences = [encode_answer(a.prompt, a.answer, stage.checkpoint.prompt_format, stage.tokenizer) for a in answers]
    raw = stage.eval().score(sequences)
    assert [better, worse] == pytest.approx([(r - about["mean"]) / about["std"] for r in raw], rel=1e-4)

    other = Path(shutil.copytree(tiny("baichuan-7b"), tmp_path / "other"))
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps({**config, "comment": "another"}), encoding="utf-8")
    with pytest.raises(ConfigError, match="was trained on another model"):
        Trained(str(folder), checkpoint=str(other))
    head = folder / "reward_head.safetensors"
    whole = head.read_bytes()
    monkeypatch.setattr(Trained, "_network", lambda self: pytest.fail("a network was loaded"))
    weight = load_file(head)["weight"]
    for damage, said in (
        (lambda: head.write_bytes(whole[:-8]), "is not a head of a reward model"),
        (lambda: ScalarHead.save(weight[:, 1:], head), "the model needs"),
        (lambda: ScalarHead.save(weight * torch.nan, head), "not finite"),
    ):
        damage()
        with pytest.raises(CheckpointError, match=said):
            Trained(str(folder))
    head.unlink()
    with pytest.raises(ConfigError, match="not its head"):
        Trained(str(folder))
    with pytest.raises(ConfigError, match="holds no reward model"):
        Trained(str(tmp_path))


def test_the_base_is_quantized_as_it_was_in_training(tmp_path: Path, learned: Callable[[str], Reward]) -> None:
    stage = learned("qlora")
    folder = stage.export(tmp_path / "run", stage.state_dict())
    about = json.loads((folder / "reward.json").read_text(encoding="utf-8"))
    assert about["quantization"] == QUANTIZATION
    messages = [Message("user", "question 1")]
    ids = encode_answer(messages, "please", stage.checkpoint.prompt_format, stage.tokenizer)
    (raw,) = stage.eval().score([ids])
    (found,) = Trained(str(folder)).score([Answered(messages, "please")])
    assert found == pytest.approx((raw - about["mean"]) / about["std"], rel=1e-4)


@pytest.mark.slow
def test_a_full_model_is_exported_with_its_head(tmp_path: Path, learned: Callable[[str], Reward]) -> None:
    stage = learned("full")
    folder = stage.export(tmp_path / "run", stage.state_dict())
    assert folder.name == "model"
    better, worse = Trained(str(folder)).score(
        [Answered([Message("user", "question 1")], text) for text in ("please thank you", "go away")]
    )
    assert better > worse  # type: ignore[operator]


def test_dropout_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"dropout is 0\.1"):
        Reward(str(tiny("baichuan-7b")), LoRA(dropout=0.1))


def test_data_without_pairs_is_refused_or_warned_of(tiny: Tiny, tmp_path: Path) -> None:
    stage = Reward(str(tiny("baichuan-7b")), LoRA(rank=2))
    with pytest.raises(ConfigError, match="set data.class_path to PreferenceData"):
        stage.check_first_batch(batches_of(1)[0])
    data = data_of(tmp_path, tiny("baichuan-7b"), [judged(f"q{i}", "yes", good=True) for i in range(4)])
    assert "compares no answers" in str(stage.check_first_batch(first_batch(data)))


def test_a_score_that_is_not_finite_is_none(
    tmp_path: Path, learned: Callable[[str], Reward], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = learned("lora")
    folder = stage.export(tmp_path / "run", stage.state_dict())
    monkeypatch.setattr(stage, "head", copy.deepcopy(stage.head))
    assert isinstance(stage.head, ScalarHead)
    stage.head.weight.data.fill_(torch.finfo(torch.float32).max)
    ScalarHead.save(stage.head.weight, folder / "reward_head.safetensors")
    assert Trained(str(folder)).score([Answered([Message("user", "question 1")], "please")]) == [None]
    prompt = Prompt([1], "question 1", "please", "file:1", messages=[Message("user", "question 1")])
    assert stage.rows([prompt])[0]["score"] is None
