"""Supervised fine-tuning: what a step computes, and what stops a run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch.optim import SGD

from lit_sft.conversation import Example
from lit_sft.corpora.belle import Belle
from lit_sft.data.collate import collate
from lit_sft.data.sft import SFTData
from lit_sft.errors import TrainingError
from lit_sft.losses.cross_entropy import TokenTotals
from lit_sft.stages.schedules import Constant
from lit_sft.stages.sft import SFT
from lit_sft.tuning._base import Tuning
from lit_sft.tuning.full import Full
from lit_sft.tuning.lora import LoRA


def stage_of(folder: Path, tuning: Tuning | None = None, **options: Any) -> SFT:
    options = {"optimizer": lambda groups: SGD(groups, lr=0.1), "schedule": Constant(0.0), **options}
    return SFT(checkpoint=str(folder), tuning=tuning or Full(), **options)


def trainer_of(tmp_path: Path, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **{"max_steps": 1, "limit_val_batches": 0, **options},
    )


def fit(stage: SFT, file: Path, tmp_path: Path, *callbacks: Callback, rows: int = 4, **options: Any) -> Trainer:
    torch.manual_seed(1)
    trainer = trainer_of(tmp_path, **options)
    trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]  # Lightning sets it, but does not declare it
    data = SFTData(stage.checkpoint, [Belle(str(file))], max_length=128, micro_batch_size=rows, validation_fraction=0.0)
    trainer.fit(stage, data)
    return trainer


@pytest.fixture
def uneven_corpus(tmp_path: Path) -> Path:
    file = tmp_path / "uneven.json"
    answers = ["好", "青榆镇在银镜湖的东岸。", "一二三四五六七八九十", "8"]
    lines = [f'{{"instruction": "问题{i}", "input": "", "output": "{answer}"}}' for i, answer in enumerate(answers)]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


class Gradients(Callback):
    """Keeps the gradients that the optimizer is given."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: SFT, *args: Any) -> None:  # type: ignore[override]
        self.found = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(("rows", "accumulation"), [(1, 4), (2, 2)])
def test_accumulated_micro_batches_of_uneven_length_give_the_gradients_of_one_batch(
    tiny_folder: Path, uneven_corpus: Path, tmp_path: Path, rows: int, accumulation: int, precision: Any
) -> None:
    gradients = []
    for rows_, accumulation_ in ((4, 1), (rows, accumulation)):
        keep = Gradients()
        options = {"accumulate_grad_batches": accumulation_, "precision": precision}
        fit(stage_of(tiny_folder), uneven_corpus, tmp_path, keep, rows=rows_, **options)
        gradients.append(keep.found)
    whole, parts = gradients
    assert whole
    tolerance = 1e-5 if precision == "32-true" else 2e-2
    for name, gradient in whole.items():
        assert (parts[name] - gradient).norm() <= tolerance * gradient.norm(), name


def test_the_logged_loss_is_the_mean_over_the_supervised_tokens_of_the_step(
    tiny_folder: Path, uneven_corpus: Path, tmp_path: Path
) -> None:
    losses = [
        fit(
            stage_of(tiny_folder), uneven_corpus, tmp_path, rows=rows, accumulate_grad_batches=4 // rows
        ).callback_metrics["train/loss"]
        for rows in (4, 1)
    ]
    assert losses[0] == pytest.approx(float(losses[1]), rel=1e-6)


def test_between_steps_that_are_logged_only_the_loss_is_handed_on(
    tiny_folder: Path, uneven_corpus: Path, tmp_path: Path
) -> None:
    """Handing on a metric takes time in which a GPU has nothing to do."""
    seen: list[set[str]] = []

    class Seen(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            seen.append({name for name in trainer.callback_metrics if name.startswith("train/")})

    fit(stage_of(tiny_folder), uneven_corpus, tmp_path, Seen(), rows=1, max_steps=2, log_every_n_steps=2)
    assert seen[0] == {"train/loss"}
    assert seen[1] > {"train/loss", "train/learning_rate", "train/gradient_norm", "train/token_accuracy"}


def test_training_is_in_train_mode_and_dropout_acts(tiny_folder: Path, uneven_corpus: Path, tmp_path: Path) -> None:
    class Modes(Callback):
        dropouts: list[bool] = []  # noqa: RUF012 - filled once

        def on_train_batch_start(self, trainer: Trainer, pl_module: SFT, *args: Any) -> None:  # type: ignore[override]
            modules = [m for name, m in pl_module.named_modules() if "lora_dropout" in name]
            self.dropouts += [m.training for m in modules if isinstance(m, torch.nn.Dropout)]

    def loss(dropout: float) -> float:
        metrics = fit(
            stage_of(tiny_folder, LoRA(rank=4, dropout=dropout)), uneven_corpus, tmp_path, Modes(), max_steps=3
        )
        return float(metrics.callback_metrics["train/loss"])

    assert loss(0.5) != loss(0.0)
    assert Modes.dropouts
    assert all(Modes.dropouts)


def test_dropout_does_not_act_in_validation(tiny_folder: Path, uneven_corpus: Path, tmp_path: Path) -> None:
    """The held-out loss within a fit is that of the weights at that step without any dropout."""
    stage = stage_of(tiny_folder, LoRA(rank=4, dropout=0.5))
    data = SFTData(
        stage.checkpoint, [Belle(str(uneven_corpus))], max_length=128, micro_batch_size=1, validation_fraction=0.5
    )
    trainer = trainer_of(tmp_path, max_steps=2, num_sanity_val_steps=0, limit_val_batches=1.0)
    trainer.fit(stage, data)
    measured = float(trainer.callback_metrics["val/loss"])
    dropouts = [module for module in stage.modules() if isinstance(module, torch.nn.Dropout)]
    assert {module.p for module in dropouts} == {0.5}
    (batch,) = [batch for batch in data.val_dataloader() if batch.sources][:1]
    stage.model.train()  # type: ignore[union-attr]
    assert stage(batch).loss.item() != stage(batch).loss.item()
    for module in dropouts:
        module.p = 0.0
    (without,) = trainer.validate(stage, data, verbose=False)
    assert measured == without["val/loss"]


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
def test_a_network_in_evaluation_mode_is_refused(tiny_folder: Path, uneven_corpus: Path, tmp_path: Path) -> None:
    stage = stage_of(tiny_folder)
    stage.configure_model()
    stage.model.eval()  # type: ignore[union-attr]
    with pytest.raises(TrainingError, match="evaluation mode"):
        fit(stage, uneven_corpus, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_harmful_loss_stops_before_the_weights_change_and_names_step_and_records(
    tiny_folder: Path, uneven_corpus: Path, tmp_path: Path, value: float
) -> None:
    culprits: list[str] = []

    class Spoiled(SFT):
        def forward(self, batch: Any) -> Any:
            totals = super().forward(batch)
            if not any("uneven.json:3" in source for source in batch.sources):
                return totals
            culprits.extend(batch.sources)
            return TokenTotals(totals.loss * value, totals.by_group * torch.tensor([value, 1, 1]))

    stage = Spoiled(checkpoint=str(tiny_folder), tuning=Full(), optimizer=lambda groups: SGD(groups, lr=0.1))
    with pytest.raises(TrainingError, match=r"optimizer step \d.*uneven.json:3") as error:
        fit(stage, uneven_corpus, tmp_path, rows=1, max_steps=4)
    assert f"Records of the step: {', '.join(culprits)}. " in str(error.value)
    assert all(torch.isfinite(parameter).all() for parameter in stage.parameters())


def test_a_first_batch_in_which_no_answer_ends_is_called_faulty(tiny_folder: Path) -> None:
    stage = stage_of(tiny_folder)
    (end, *_) = stage.checkpoint.prompt_format.stop_token_ids(stage.tokenizer)
    ending, endless = (collate([[Example([20, 30, last], [-100, 30, last])]], 0) for last in (end, 31))
    assert stage.check_first_batch(ending) is None
    assert "supervises no end of an answer" in str(stage.check_first_batch(endless))


def test_norms_and_biases_are_spared_weight_decay(tiny_folder: Path, uneven_corpus: Path, tmp_path: Path) -> None:
    stage = stage_of(tiny_folder, optimizer=lambda groups: SGD(groups, lr=0.1, weight_decay=0.3))
    trainer = fit(stage, uneven_corpus, tmp_path)
    decayed, spared = trainer.optimizers[0].param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in spared["params"]} == {1}


def test_only_adapters_train_and_only_they_are_in_a_checkpoint(
    tiny_folder: Path, uneven_corpus: Path, tmp_path: Path
) -> None:
    stage = stage_of(tiny_folder, LoRA(rank=4))
    stage.configure_model()
    before = {name: p.clone() for name, p in stage.named_parameters()}
    trainer = fit(stage, uneven_corpus, tmp_path, max_steps=3)
    changed = {name for name, p in stage.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    stored = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert stored.keys() == {name for name, p in stage.named_parameters() if p.requires_grad}


def test_a_checkpoint_of_another_tuning_is_refused_with_the_difference(
    tiny_folder: Path, uneven_corpus: Path, tmp_path: Path
) -> None:
    trainer = fit(stage_of(tiny_folder, LoRA(rank=4)), uneven_corpus, tmp_path)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    stored = torch.load(tmp_path / "x.ckpt", weights_only=True)
    other = stage_of(tiny_folder, LoRA(rank=8))
    other.trainer = trainer
    with pytest.raises(TrainingError, match=r"lora_A.* has shape \(4, 64\) in it and \(8, 64\) here"):
        other.on_load_checkpoint(stored)


@pytest.mark.parametrize("weight", [0, 0.25])
def test_baichuan_2_trains_with_the_z_loss_that_its_config_asks_for(
    tiny: Callable[[str], Path], uneven_corpus: Path, tmp_path: Path, weight: float
) -> None:
    """As the original has it: the mean square of the largest logits, here of the positions that carry loss."""
    folder = Path(shutil.copytree(tiny("baichuan2-7b"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    largest: list[torch.Tensor] = []

    class Watch(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: SFT) -> None:  # type: ignore[override]
            head = pl_module.causal_lm.get_output_embeddings()
            head.register_forward_hook(lambda module, args, logits: largest.append(logits.detach().amax(-1)))

    losses = []
    for stated in (weight, 0):
        (folder / "config.json").write_text(json.dumps({**config, "z_loss_weight": stated}))
        stage = SFT(checkpoint=str(folder), tuning=Full(), family="baichuan2-7b", schedule=Constant(0.0))
        losses.append(float(fit(stage, uneven_corpus, tmp_path, Watch()).callback_metrics["train/loss"]))
    expected = weight * float(largest[0].square().mean())
    assert losses[0] - losses[1] == pytest.approx(expected, rel=1e-3, abs=1e-6)
