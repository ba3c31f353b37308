"""Each tuning on each family: what trains, in which type, and what a checkpoint and an export of it hold."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from peft import PeftModel
from safetensors.torch import load_file
from torch.optim import AdamW
from torch.utils.data import DataLoader

from lit_sft import Conversation, Message, open_checkpoint
from lit_sft.checkpoint.opening import Checkpoint, families
from lit_sft.data.batch import Batch
from lit_sft.data.collate import collate
from lit_sft.stages.sft import SFT
from lit_sft.tuning._base import Tuning
from lit_sft.tuning.full import Full
from lit_sft.tuning.lora import LoRA
from lit_sft.tuning.qlora import QLoRA

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),  # nothing held out
]

TUNINGS: dict[str, Callable[[], Tuning]] = {
    "full": Full,
    "lora": lambda: LoRA(rank=4),
    "qlora-nf4": lambda: QLoRA(rank=4, quant_type="nf4"),
    "qlora-int8": lambda: QLoRA(rank=4, quant_type="int8"),
}
CONVERSATIONS = [
    Conversation([Message("user", "你好"), Message("assistant", "你好！")]),
    Conversation([Message("user", "2加2等于几？"), Message("assistant", "2加2等于4。")]),
    Conversation([Message("user", "请介绍青榆镇。"), Message("assistant", "青榆镇在银镜湖的东岸。")]),
]
NUM_STEPS = 2
"""At the first the gradient of lora_A is zero."""


def batch_of(checkpoint: Checkpoint) -> Batch:
    """Two rows, the first of two examples."""
    tokenizer = checkpoint.load_tokenizer()
    first, second, third = (checkpoint.prompt_format.encode(c, tokenizer) for c in CONVERSATIONS)
    return collate([[first, second], [third]], 0)


def loader_of(batch: Batch) -> Any:
    return DataLoader([batch] * NUM_STEPS, batch_size=None)  # type: ignore[arg-type]


def make_trainer(folder: Path, **options: Any) -> Trainer:
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger"), False)
    defaults = {"accelerator": "cpu", "max_steps": NUM_STEPS, "max_epochs": 1, "default_root_dir": folder}
    return Trainer(**{**quiet, **defaults, **options})


def make_stage(folder: Path, family: str, tuning: Tuning, **options: Any) -> SFT:
    optimizer = options.pop("optimizer", lambda groups: AdamW(groups, lr=0.01))
    return SFT(checkpoint=str(folder), family=family, tuning=tuning, optimizer=optimizer, **options)


def tensors_of(stage: SFT) -> dict[str, torch.Tensor]:
    """Parameters, packed weights with their scales, and buffers that are not saved."""
    found = {**stage.state_dict(), **dict(stage.named_buffers())}
    return {name: value.detach().clone() for name, value in found.items() if isinstance(value, torch.Tensor)}


@dataclass
class Trained:
    tuning: str
    stage: SFT
    trainer: Trainer
    batch: Batch
    before: dict[str, torch.Tensor]

    @property
    def trained_names(self) -> set[str]:
        return {name for name, parameter in self.stage.named_parameters() if parameter.requires_grad}


@pytest.fixture(scope="module", params=sorted(families()))
def family(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module", params=TUNINGS)
def trained(
    request: pytest.FixtureRequest, family: str, tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    torch.manual_seed(0)
    stage = make_stage(tiny(family), family, TUNINGS[request.param]())
    trainer = make_trainer(tmp_path_factory.mktemp("run"), precision="bf16-true")
    stage.trainer = trainer
    stage.configure_model()
    before, batch = tensors_of(stage), batch_of(stage.checkpoint)
    trainer.fit(stage, loader_of(batch), [])
    return Trained(request.param, stage, trainer, batch, before)


def test_what_should_train_changes_and_everything_else_stays_to_the_bit(trained: Trained) -> None:
    after = tensors_of(trained.stage)
    assert after.keys() == trained.before.keys()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, trained.before[name])}
    assert trained.trained_names == (
        set(dict(trained.stage.named_parameters()))
        if trained.tuning == "full"
        else {name for name in after if ".lora_A." in name or ".lora_B." in name}
    )
    tied = {name for name in changed if name.endswith("lm_head.weight")}  # the embedding under its second name
    assert changed - tied == trained.trained_names - tied


def test_types_are_float32_adapters_beside_bfloat16_or_packed_weights(trained: Trained) -> None:
    linear = {name.removeprefix("base_layer.") for name in trained.stage.checkpoint.family.lora_targets}
    expected = {"full": torch.bfloat16, "lora": torch.bfloat16, "qlora-nf4": torch.uint8, "qlora-int8": torch.int8}
    for name, parameter in trained.stage.named_parameters():
        layer = name.removesuffix(".weight").removesuffix(".base_layer").rpartition(".")[2]
        if "lora_" in name:
            assert parameter.dtype == torch.float32, name
        elif layer in linear and name.endswith("weight"):
            assert parameter.dtype == expected[trained.tuning], name
        else:
            assert parameter.dtype == torch.bfloat16, name


def test_a_checkpoint_holds_what_trained_and_no_byte_of_the_base(trained: Trained, tmp_path: Path) -> None:
    trained.trainer.save_checkpoint(tmp_path / "x.ckpt")
    stored = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert stored["state_dict"].keys() == trained.trained_names
    if trained.tuning == "full":
        return
    folder = trained.stage.tuning.export(trained.stage.model, tmp_path, trained.stage.checkpoint)
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    adapter = load_file(folder / "adapter_model.safetensors")
    assert {f"model.{name}".replace(".weight", ".default.weight") for name in adapter} == trained.trained_names
    content = (tmp_path / "x.ckpt").read_bytes() + (folder / "adapter_model.safetensors").read_bytes()
    for name, tensor in trained.before.items():
        some_bytes = tensor.reshape(-1)[:32].view(torch.uint8).numpy().tobytes()
        if name not in trained.trained_names and tensor.unique().numel() > 16:
            assert some_bytes not in content, name


def test_the_adapter_opens_with_plain_peft_and_gives_equal_logits(trained: Trained, tmp_path: Path) -> None:
    if trained.tuning != "lora":
        return
    checkpoint = trained.stage.checkpoint
    folder = trained.stage.tuning.export(trained.stage.model, tmp_path, checkpoint)
    base = open_checkpoint(checkpoint.path, checkpoint.family.name).load_model(dtype=torch.bfloat16)
    adapted = PeftModel.from_pretrained(base, folder)
    input_ids = trained.batch.input_ids[1:]
    network = trained.stage.causal_lm.eval()
    with torch.no_grad():
        assert torch.equal(adapted(input_ids=input_ids).logits, network(input_ids=input_ids).logits)
    network.train()


def test_norms_and_biases_are_spared_weight_decay(trained: Trained) -> None:
    """By name, as a check on the dimensions that decide: ALiBi and rotary buffers are not parameters."""
    names = {id(parameter): name for name, parameter in trained.stage.named_parameters()}
    for group in trained.trainer.optimizers[0].param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            is_spared = name.endswith("bias") or "norm" in name or ".ln_" in name
            assert (group["weight_decay"] == 0) == is_spared, name


def test_restored_adapters_are_those_of_the_checkpoint_to_the_bit(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    stages = [make_stage(tiny("moss"), "moss", LoRA(rank=4, dora=True)) for _ in range(2)]
    loader = loader_of(batch_of(stages[0].checkpoint))
    trainer = make_trainer(tmp_path, precision="bf16-true")
    trainer.fit(stages[0], loader, [])
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    make_trainer(tmp_path, precision="bf16-true").validate(
        stages[1], loader, ckpt_path=str(tmp_path / "x.ckpt"), weights_only=True, verbose=False
    )
    stored = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    restored = dict(stages[1].named_parameters())
    assert all(torch.equal(restored[name], weight) for name, weight in stored.items())
    assert {restored[name].dtype for name in stored} == {torch.float32}
