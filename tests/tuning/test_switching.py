"""Several adapters on one base: which one computes, and that none of them is frozen by the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_sft.checkpoint.opening import open_checkpoint
from lit_sft.tuning._switching import POLICY, REFERENCE, add_copy, use, using, weights_of
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
    add_copy(model, REFERENCE)
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
    add_copy(model, REFERENCE)
    with torch.no_grad(), using(model, REFERENCE):
        assert torch.equal(logits(model), before)


def test_switching_changes_no_gradient_and_is_undone(tiny: Callable[[str], Path]) -> None:
    model = trained(tiny)
    add_copy(model, REFERENCE)
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
    add_copy(model, REFERENCE)
    tuning.save(model, tmp_path / "adapter", checkpoint)
    assert sorted(file.name for file in (tmp_path / "adapter").iterdir() if file.suffix != ".md") == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    again = LoRA(adapter=str(tmp_path / "adapter")).load(checkpoint, "32-true")
    assert torch.equal(logits(again), logits(model))


def second(model: Any, tuning: LoRA, path: Path, name: str = "value") -> None:
    """An adapter that trains beside the first, and has learned something else."""
    tuning.add(model, name, open_checkpoint(str(path)), is_trainable=True)
    with torch.no_grad():
        for key, parameter in weights_of(model, name).items():
            if ".lora_B." in key:
                parameter.normal_(std=0.1)


def gradients(model: Any, tuning: LoRA) -> dict[str, torch.Tensor]:
    """Of a loss of each adapter, one after the other, each in use from its forward to its backward pass."""
    model.zero_grad()
    for name in (POLICY, "value"):
        tuning.use(model, name)
        model(IDS).logits.square().mean().backward()
    tuning.use(model, POLICY)
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


def test_a_fresh_adapter_trains_beside_the_first_and_changes_nothing_yet(tiny: Callable[[str], Path]) -> None:
    tuning, path = LoRA(rank=2), tiny("baichuan-7b")
    model = trained(tiny, tuning)
    before = logits(model)
    tuning.add(model, "value", open_checkpoint(str(path)), is_trainable=True)
    assert all(p.requires_grad for name in (POLICY, "value") for p in weights_of(model, name).values())
    assert torch.equal(logits(model), before)
    with torch.no_grad(), tuning.using(model, None):
        base = logits(model)
    with torch.no_grad(), tuning.using(model, "value"):
        assert torch.equal(logits(model), base)


@pytest.mark.parametrize(
    "tuning", [LoRA(rank=2), LoRA(rank=2, dora=True), QLoRA(rank=2)], ids=["lora", "dora", "qlora"]
)
def test_two_adapters_have_right_gradients_under_gradient_checkpointing(
    tiny: Callable[[str], Path], tuning: LoRA
) -> None:
    model = trained(tiny, tuning)
    second(model, tuning, tiny("baichuan-7b"))
    model.train()
    plain = gradients(model, tuning)
    assert plain.keys() == {*weights_of(model, POLICY), *weights_of(model, "value")}
    tuning.causal_lm(model).activation_checkpointing_enable({"use_reentrant": False})
    again = gradients(model, tuning)
    for key, gradient in plain.items():
        assert gradient.abs().max() > 0, key
        torch.testing.assert_close(again[key], gradient)


def test_what_is_switched_before_the_backward_pass_would_have_other_gradients(tiny: Callable[[str], Path]) -> None:
    """Why `using` is refused where gradients are recorded."""
    tuning = LoRA(rank=2)
    model = trained(tiny, tuning)
    second(model, tuning, tiny("baichuan-7b"))
    model.train()
    plain = gradients(model, tuning)
    tuning.causal_lm(model).activation_checkpointing_enable({"use_reentrant": False})
    model.zero_grad()
    tuning.use(model, "value")
    loss = model(IDS).logits.square().mean()
    tuning.use(model, POLICY)
    loss.backward()
    wrong = {key: p.grad for key, p in weights_of(model, "value").items()}
    error = sum(float((wrong[key] - plain[key]).norm()) if wrong[key] is not None else 1.0 for key in wrong)
    assert error > 0.1 * sum(float(plain[key].norm()) for key in wrong)


def test_an_adapter_of_another_rank_and_other_layers_stands_beside(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    path = tiny("baichuan-7b")
    checkpoint = open_checkpoint(str(path))
    other = LoRA(rank=3, targets=["o_proj"])
    model = trained(tiny, other)
    expected = logits(model)
    other.save(model, tmp_path / "adapter", checkpoint)

    tuning = LoRA(rank=2, targets=["down_proj"])
    policy = trained(tiny, tuning)
    before = logits(policy)
    tuning.add(policy, "reward", checkpoint, folder=tmp_path / "adapter")
    assert not any(p.requires_grad for p in weights_of(policy, "reward").values())
    assert all(p.requires_grad for p in weights_of(policy, POLICY).values())
    assert torch.equal(logits(policy), before)
    with torch.no_grad(), tuning.using(policy, "reward"):
        torch.testing.assert_close(logits(policy), expected)
