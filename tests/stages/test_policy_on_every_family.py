"""Policies on the network of every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bandits import FewWords, FewWordsInFourBits, learned
from policies import data_of, fitted, policy_of, trained

from lit_sft.checkpoint.opening import Checkpoint, open_checkpoint

KINDS = {"lora": FewWords, "qlora": FewWordsInFourBits}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_before_the_first_step_every_ratio_is_one_to_the_bit_and_the_step_changes_the_weights(
    checkpoint: Checkpoint, tmp_path: Path, precision: str
) -> None:
    """With adapters, in packed rows, under gradient checkpointing."""
    stage = policy_of(checkpoint.path, family=checkpoint.family.name, packing=True, gradient_checkpointing=True)
    options: dict[str, Any] = {"precision": precision, "accumulate_grad_batches": 2, "max_steps": 2}
    found = fitted(stage, data_of(checkpoint, tmp_path), tmp_path, **options)
    assert found["train/policy/approxkl_avg"] == [0.0, 0.0]
    assert found["train/objective/kl"][0] == 0.0
    assert min(found["train/gradient_norm"]) > 0
    moved = [name for name, weight in trained(stage).items() if "lora_B" in name and weight.any()]
    assert len(moved) == sum("lora_B" in name for name in trained(stage))


@pytest.mark.slow
def test_rloo_finds_the_best_policy_of_a_problem_with_a_known_answer(checkpoint: Checkpoint, tmp_path: Path) -> None:
    # Rows of one length leave the policy fewer ways.
    is_norm_head = checkpoint.family.name.startswith("baichuan2-")
    found = learned(checkpoint, tmp_path, num_steps=100 if is_norm_head else 60)
    assert found.distance_before > 0.2
    assert found.distance_after < 0.01
    assert 0 <= found.regret < 0.001


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "algorithm", "kind"),  # RLOO with LoRA: above. What sets GRPO apart sees no network
    [
        ("baichuan-7b", "grpo", "lora"),
        ("baichuan-13b", "rloo", "qlora"),
        ("moss", "rloo", "qlora"),
        ("chatglm-6b", "rloo", "qlora"),
        ("chatglm2-6b", "rloo", "qlora"),
    ],
)
def test_rewarded_tokens_become_more_frequent(
    family: str, algorithm: Any, kind: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny(family), family)
    options: dict[str, Any] = {"tuning_class": KINDS[kind], "num_answers": 32, "algorithm": algorithm}
    found = learned(checkpoint, tmp_path, num_steps=12, lr=0.004, **options)
    assert found.distance_after < 0.8 * found.distance_before
    assert found.share_after > 1.1 * found.share_before
