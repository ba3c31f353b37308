"""Weights that other tools wrote are read if they are what they are taken for, or called what they are."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_sft import open_checkpoint
from lit_sft.checkpoint.opening import Checkpoint
from lit_sft.errors import CheckpointError

NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}


def say(folder: Path, **keys: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "pytorch_model.bin", weights_only=True)  # type: ignore[no-any-return]


def rename(folder: Path, change: Any) -> None:
    torch.save({change(name): tensor for name, tensor in weights_of(folder).items()}, folder / "pytorch_model.bin")


def refused(folder: Path, *said: str) -> None:
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(folder, "baichuan-7b").load_model()
    assert "\n" not in str(raised.value)
    for part in said:
        assert part in str(raised.value)


@pytest.mark.parametrize("left", [NF4, GPTQ, AWQ, {"quant_method": "unheard-of"}, {}])
def test_a_quantization_config_beside_plain_weights_is_ignored_in_a_line(
    checkpoint: Checkpoint, left: Any, caplog: pytest.LogCaptureFixture
) -> None:
    expected = checkpoint.load_model().state_dict()
    say(checkpoint.path, quantization_config=left)
    again = open_checkpoint(checkpoint.path, checkpoint.family.name)
    with caplog.at_level(logging.WARNING):
        network = again.load_model()
    assert "quantization_config is ignored" in caplog.text
    assert str(checkpoint.path / "config.json") in caplog.text
    assert not hasattr(network.config, "quantization_config")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())


def test_no_quantization_config_is_left_where_null_stands(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    say(folder, quantization_config=None)
    open_checkpoint(folder).load_model()
    assert not caplog.text


@pytest.mark.parametrize("stated", ["4bit", 4, True, ["nf4"]])
def test_a_quantization_config_that_is_not_an_object_is_refused_with_the_remedy(folder: Path, stated: Any) -> None:
    say(folder, quantization_config=stated)
    refused(folder, "config.json: quantization_config is ", "not an object; remove it")


@pytest.mark.parametrize(
    ("stated", "endings", "name"),
    [
        (GPTQ, ("qweight", "qzeros", "scales", "g_idx"), "GPTQ"),
        (AWQ, ("qweight", "qzeros", "scales"), "AWQ"),
        (None, ("qweight", "qzeros", "scales"), "GPTQ"),
        ({"quant_method": "compressed-tensors"}, ("weight_packed", "weight_scale"), "compressed-tensors"),
    ],
)
def test_packed_weights_are_refused_with_the_remedy(folder: Path, stated: Any, endings: Any, name: str) -> None:
    if stated:
        say(folder, quantization_config=stated)
    weights = weights_of(folder)
    del weights["model.layers.0.mlp.up_proj.weight"]
    packed = {f"model.layers.0.mlp.up_proj.{end}": torch.ones(2, 2, dtype=torch.int32) for end in endings}
    torch.save({**weights, **packed}, folder / "pytorch_model.bin")
    refused(folder, name, "mlp.up_proj", "half precision")


def test_whole_numbers_for_weights_are_refused(folder: Path) -> None:
    rows = weights_of(folder)
    rows["model.layers.0.mlp.up_proj.weight"] = rows["model.layers.0.mlp.up_proj.weight"].to(torch.int8)
    torch.save(rows, folder / "pytorch_model.bin")
    refused(folder, "int8", "half precision")


@pytest.mark.parametrize(
    ("prefix", "whose"),
    [
        ("module.", "DeepSpeed"),
        ("base_model.model.", "PEFT"),
        ("_orig_mod.", "torch.compile"),
        ("_fsdp_wrapped_module.", "FSDP"),
        ("network.", "holds this one"),
    ],
)
def test_a_wrapper_is_told_by_the_names_of_its_tensors(folder: Path, prefix: str, whose: str) -> None:
    rename(folder, lambda name: prefix + name)
    refused(folder, whose, prefix, "save_pretrained")


def test_adapters_beside_the_weights_are_called_so(folder: Path) -> None:
    rename(folder, lambda name: "base_model.model." + name.replace("W_pack.weight", "W_pack.base_layer.weight"))
    refused(folder, "PEFT", "merge_and_unload")
    rename(folder, lambda name: name.removeprefix("base_model.model.").replace(".base_layer", ""))
    extra = {"model.layers.0.self_attn.W_pack.lora_A.default.weight": torch.ones(2, 64)}
    torch.save({**weights_of(folder), **extra}, folder / "pytorch_model.bin")
    refused(folder, "PEFT", "merge_and_unload")


def test_compiled_blocks_are_called_so(folder: Path) -> None:
    rename(folder, lambda name: name.replace("layers.0.", "layers.0._orig_mod."))
    refused(folder, "torch.compile")


def test_a_training_checkpoint_is_called_so(folder: Path) -> None:
    torch.save({"epoch": 1, "state_dict": weights_of(folder)}, folder / "pytorch_model.bin")
    refused(folder, "training checkpoint", "'state_dict'")
