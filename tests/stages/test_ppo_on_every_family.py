"""PPO on the network of every family, with both kinds of adapters, on a problem with a known answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from bandits import FewWords, FewWordsInFourBits, learned

from lit_sft.checkpoint.opening import open_checkpoint
from lit_sft.stages.ppo import PPO

FAMILIES = ("baichuan-7b", "baichuan-13b", "moss", "chatglm-6b", "chatglm2-6b")
KINDS = {"lora": FewWords, "qlora": FewWordsInFourBits}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind"), [*((family, "lora") for family in FAMILIES), ("baichuan-7b", "qlora")])
def test_rewarded_tokens_become_more_frequent(
    family: str, kind: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny(family), family)
    options = {"stage_class": PPO, "tuning_class": KINDS[kind], "num_answers": 32}
    found = learned(checkpoint, tmp_path, num_steps=12, lr=0.004, **options)  # type: ignore[arg-type]
    assert found.distance_after < 0.5 * found.distance_before
    assert found.share_after > 1.1 * found.share_before


@pytest.mark.slow
def test_ppo_finds_the_best_policy(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny("baichuan-7b"))
    options = {"stage_class": PPO, "num_answers": 64, "num_iterations": 2}
    found = learned(checkpoint, tmp_path, num_steps=60, lr=0.02, **options)  # type: ignore[arg-type]
    assert found.distance_before > 0.2
    assert found.distance_after < 0.05
