"""Several adapters on one base: which one computes, and that none of them is frozen by the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_sft.checkpoint.opening import open_checkpoint
from lit_sft.tuning._switching import POLICY, REFERENCE, add_frozen_copy, use, using
from lit_sft.tuning.lora import LoRA
from lit_sft.tuning.qlora import QLoRA

IDS = torch.tensor([[5, 6, 7, 8]])


def trained(tiny: Callable[[str], Path], tuning: LoRA | None = None) -> Any:
    """A network whose adapter has learned something."""
    model: Any = (tuning or LoRA(rank=2)).load(open_checkpoint(str(tiny("baichuan-7b"))), "32-true")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(IDS).logits
    return result


def test_a_frozen_copy_answers_as_the_adapter_did_while_that_one_goes_on_training(tiny: Callable[[str], Path]) -> None:
    model = trained(tiny)
    before = logits(model)
    training = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    add_frozen_copy(model, REFERENCE)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == training
    assert torch.equal(logits(model), before)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f".lora_A.{POLICY}." in name:
                parameter += 0.1
    assert not torch.allclose(logits(model), before)
    with torch.no_grad(), using(model, REFERENCE):
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("tuning", [LoRA(rank=2, dora=True), LoRA(rank=4, rslora=True), QLoRA(rank=2)])
def test_every_kind_of_adapter_is_copied_whole(tiny: Callable[[str], Path], tuning: LoRA) -> None:
    model = trained(tiny, tuning)
    before = logits(model)
    add_frozen_copy(model, REFERENCE)
    with torch.no_grad(), using(model, REFERENCE):
        assert torch.equal(logits(model), before)


def test_switching_changes_no_gradient_and_is_undone(tiny: Callable[[str], Path]) -> None:
    model = trained(tiny)
    add_frozen_copy(model, REFERENCE)
    training = [parameter.requires_grad for parameter in model.parameters()]
    before = logits(model)
    with torch.no_grad(), using(model, None):
        base = logits(model)
    use(model, REFERENCE)
    use(model, POLICY)
    assert [parameter.requires_grad for parameter in model.parameters()] == training
    assert torch.equal(logits(model), before)
    assert not torch.allclose(base, before)


def test_where_gradients_are_recorded_an_adapter_is_not_switched_for_a_while(tiny: Callable[[str], Path]) -> None:
    model = trained(tiny)
    with pytest.raises(RuntimeError, match="gradients are recorded"), using(model, None):
        pass


def test_the_adapter_that_is_saved_is_the_one_that_trained(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny("baichuan-7b")))
    tuning = LoRA(rank=2)
    model = trained(tiny)
    add_frozen_copy(model, REFERENCE)
    tuning.save(model, tmp_path / "adapter", checkpoint)
    assert sorted(file.name for file in (tmp_path / "adapter").iterdir() if file.suffix != ".md") == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    again = LoRA(adapter=str(tmp_path / "adapter")).load(checkpoint, "32-true")
    assert torch.equal(logits(again), logits(model))
