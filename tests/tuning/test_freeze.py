"""Freeze tuning: which weights train, in which type, what of the backward pass is spared, and what is exported."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tuning.test_tunings import batch_of, make_stage

from lit_sft.__main__ import main
from lit_sft.checkpoint.opening import Checkpoint, open_checkpoint
from lit_sft.errors import ConfigError
from lit_sft.preflight.memory import Plan, base_bytes, estimate, num_trained
from lit_sft.preflight.network import measure_network
from lit_sft.tuning.freeze import Freeze
from lit_sft.tuning.full import Full


def test_the_last_blocks_train_in_float32_beside_half_precision(checkpoint: Checkpoint) -> None:
    network = Freeze(1).load(checkpoint, "bf16-mixed")
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {
        name for name, _ in network.named_parameters() if ".1." in name.replace("transformer.h.1.", ".1.")
    }
    assert all((p.dtype == torch.float32) == p.requires_grad for p in network.parameters())
    above = Freeze(0, train_head=True).load(checkpoint, "bf16-mixed")
    is_tied = above.get_output_embeddings().weight is above.get_input_embeddings().weight
    assert (above.get_input_embeddings().weight.dtype == torch.float32) == is_tied


@pytest.mark.parametrize(
    "parts", [{}, {"train_embeddings": True}, {"train_head": True}, {"train_embeddings": True, "train_head": True}]
)
def test_memory_counts_what_trains(checkpoint: Checkpoint, parts: dict[str, bool]) -> None:
    tuning = Freeze(1, **parts)
    network = tuning.load(checkpoint, "bf16-mixed")
    size = measure_network(checkpoint.family)
    plan = Plan(tuning.footprint(checkpoint.family.lora_targets))
    # All but the bias of MOSS's head.
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert num_trained(size, plan) == pytest.approx(trained, rel=0.02)
    assert base_bytes(size, plan) == pytest.approx(sum(p.nbytes for p in network.parameters()), rel=0.02)
    whole = Plan(Full().footprint(checkpoint.family.lora_targets))
    assert estimate(size, plan).total < estimate(size, whole).total


@pytest.mark.parametrize("parts", [{}, {"train_head": True}, {"train_embeddings": True}])
def test_it_computes_with_and_without_autocast(checkpoint: Checkpoint, parts: dict[str, bool]) -> None:
    network = Freeze(1, **parts).load(checkpoint, "bf16-mixed")
    ids = torch.tensor([[30, 31, 32, 33]])
    expected = checkpoint.load_model()(input_ids=ids).logits
    for is_mixed in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            logits = network(input_ids=ids).logits
        logits.float().sum().backward()
        torch.testing.assert_close(logits.float(), expected, atol=0.1, rtol=0.1)


def test_a_step_under_mixed_precision_is_that_of_full_tuning_for_the_blocks_that_train(
    tiny: Callable[[str], Path],
) -> None:
    gradients = []
    for tuning in (Freeze(1), Full()):
        stage = make_stage(tiny("chatglm-6b"), "auto", tuning)
        stage.configure_model()
        stage(batch_of(stage.checkpoint)).loss.backward()
        gradients.append({name: p.grad for name, p in stage.named_parameters() if p.grad is not None})
    assert gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


def test_more_blocks_than_there_are_and_none_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="num_blocks is 3, but .* has 2 blocks"):
        Freeze(3).check(checkpoint)
    with pytest.raises(ConfigError, match="nothing would train"):
        Freeze(0)
    Freeze(0, train_head=True).check(checkpoint)


def test_an_export_of_what_trained_alone_is_the_whole_model(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """As where the weights are shared out over devices."""
    checkpoint = open_checkpoint(tiny("chatglm2-6b"))
    network = Freeze(1).load(checkpoint, "bf16-true")
    weights = {name: p.detach() + 1 for name, p in network.named_parameters() if p.requires_grad}
    Freeze(1).save(network, tmp_path, checkpoint, weights)
    saved = open_checkpoint(tmp_path, "chatglm2-6b").load_model(dtype=torch.bfloat16).state_dict()
    for name, weight in checkpoint.load_model(dtype=torch.bfloat16).state_dict().items():
        assert torch.equal(saved[name], weights.get(name, weight)), name


@pytest.mark.slow
@pytest.mark.parametrize("family", ["chatglm-6b", "chatglm2-6b"])
def test_a_run_trains_and_leaves_a_checkpoint(
    family: str, tiny: Callable[[str], Path], write_config: Callable[..., str], tmp_path: Path
) -> None:
    tuning = {"class_path": "Freeze", "init_args": {"num_blocks": 1}}
    config = write_config(
        model={"checkpoint": str(tiny(family)), "tuning": tuning}, trainer={"precision": "bf16-mixed"}
    )
    assert main(["fit", "--config", config, "--name", "frozen"]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["after"]["val/loss"] < summary["before"]["val/loss"]
    stored = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all("layers.1." in name for name in stored)
    assert main(["predict", "--run", str(run)]) == 0
    open_checkpoint(run / "model", family).load_model()
