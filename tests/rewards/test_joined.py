"""A reward model as an adapter on the network of a policy: the same scores, and one base in memory."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_sft.checkpoint.opening import open_checkpoint
from lit_sft.conversation import Message
from lit_sft.rewards._base import Answered
from lit_sft.rewards.trained import Trained
from lit_sft.stages.reward import Reward
from lit_sft.tuning._base import Tuning
from lit_sft.tuning.full import Full
from lit_sft.tuning.lora import LoRA
from lit_sft.tuning.qlora import QLoRA

Tiny = Callable[[str], Path]

ANSWERS = [Answered([Message("user", "question")], text) for text in ("please", "go away", "thank you very much")]
BOTH = pytest.mark.parametrize("tuning", [LoRA(rank=4), QLoRA(rank=4)], ids=["lora", "qlora"])


def reward_run(path: Path, tuning: Tuning, folder: Path) -> Path:
    """What a run of the stage Reward exports, of an adapter that is not zero."""
    stage = Reward(str(path), tuning)
    stage.configure_model()
    with torch.no_grad():
        for name, parameter in stage.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
    stage.statistics = {"mean": 0.1, "std": 2.0}
    stage.export(folder, stage.state_dict())
    return folder


def in_memory(*modules: Any) -> int:
    """Bytes of all tensors of networks, each once."""
    storages: dict[int, int] = {}
    for module in modules:
        tensors = [*module.parameters(), *module.buffers()]
        states = [getattr(parameter, "quant_state", None) for parameter in module.parameters()]
        for state in filter(None, states):
            tensors += [state.absmax, state.code, *([state.state2.absmax] if state.nested else [])]
        storages |= {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@BOTH
def test_it_scores_as_by_itself_while_the_policy_learns(tiny: Tiny, tmp_path: Path, tuning: LoRA) -> None:
    path = tiny("baichuan-7b")
    run = reward_run(path, tuning, tmp_path / "run")
    expected = Trained(str(run)).score(ANSWERS)
    checkpoint = open_checkpoint(str(path))
    model = tuning.load(checkpoint, "32-true")
    reward = Trained(str(run))
    assert reward.join(tuning, model, checkpoint, "reward")
    assert reward.score(ANSWERS) == pytest.approx(expected, rel=1e-4)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.1)
    before = [p.requires_grad for p in model.parameters()]
    assert reward.score(ANSWERS) == pytest.approx(expected, rel=1e-4)
    assert [p.requires_grad for p in model.parameters()] == before


@BOTH
def test_memory_is_one_base_and_the_adapters(tiny: Tiny, tmp_path: Path, tuning: LoRA) -> None:
    path = tiny("baichuan-7b")
    checkpoint = open_checkpoint(str(path))
    run = reward_run(path, tuning, tmp_path / "run")
    model: Any = tuning.load(checkpoint, "32-true")
    alone = in_memory(model)
    adapter = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    reward = Trained(str(run))
    reward.join(tuning, model, checkpoint, "reward")
    tuning.add(model, "value", checkpoint, is_trainable=True)
    network, head = reward.load()
    assert network is tuning.causal_lm(model)
    head_bytes = in_memory(head)
    assert in_memory(model, head) == alone + 2 * adapter + head_bytes
    separate, own_head = Trained(str(run)).load()
    assert in_memory(model, separate, own_head) > 1.9 * alone
    reward.unload()
    assert reward.load()[0] is network


def test_scores_are_those_of_training_mode_and_leave_no_graph(tiny: Tiny, tmp_path: Path) -> None:
    path, tuning = tiny("baichuan-7b"), LoRA(rank=4)
    run = reward_run(path, tuning, tmp_path / "run")
    checkpoint = open_checkpoint(str(path))
    model = tuning.load(checkpoint, "32-true")
    tuning.causal_lm(model).activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    reward = Trained(str(run))
    reward.join(tuning, model, checkpoint, "reward")
    assert reward.score(ANSWERS) == pytest.approx(Trained(str(run)).score(ANSWERS), rel=1e-4)
    assert all(module.training for module in model.modules())


def test_where_it_cannot_join_it_says_why_and_has_a_network_of_its_own(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, tuning = tiny("baichuan-7b"), LoRA(rank=4)
    run = reward_run(path, tuning, tmp_path / "run")
    full_run = reward_run(path, Full(), tmp_path / "full")
    other = Path(shutil.copytree(path, tmp_path / "other"))
    config = (other / "config.json").read_text(encoding="utf-8")
    (other / "config.json").write_text(config + "\n", encoding="utf-8")
    cases = [
        (full_run, tuning, path, "all of its weights have trained"),
        (run, Full(), path, "the policy has no adapters"),
        (run, tuning, other, "it was trained on another model than"),
    ]
    for folder, of_policy, base, reason in cases:
        checkpoint = open_checkpoint(str(base))
        reward = Trained(str(folder))
        with caplog.at_level(logging.WARNING):
            assert not reward.join(of_policy, of_policy.load(checkpoint, "32-true"), checkpoint, "reward")
        assert reason in caplog.text
        assert len(reward.score(ANSWERS)) == 3
        caplog.clear()


def test_a_base_with_another_quantization_is_warned_of(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tiny("baichuan-7b")
    run = reward_run(path, QLoRA(rank=4), tmp_path / "run")
    checkpoint, tuning = open_checkpoint(str(path)), LoRA(rank=4)
    with caplog.at_level(logging.WARNING):
        assert Trained(str(run)).join(tuning, tuning.load(checkpoint, "32-true"), checkpoint, "reward")
    assert "its scores are a little different" in caplog.text
