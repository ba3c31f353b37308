"""Two processes, each with prompts of its own, learn what one does that has all of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from policies import prompts_in
from several_fits import Job, launch
from started import start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_sft.__main__ import main
from lit_sft.distributed.processes import free_port

pytestmark = pytest.mark.slow


def words(root: Path, checkpoint: Path, name: str, *, devices: int, stage: str = "Policy", **changes: Any) -> list[str]:
    """A fit of two steps on each of two rollouts of four prompts, shared out over devices."""
    of_ppo = stage == "PPO"
    config = {
        "seed_everything": 7,
        "runs": str(root / "runs"),
        "model": {
            "class_path": stage,
            "init_args": {
                "checkpoint": str(checkpoint),
                "tuning": {"class_path": "LoRA", "init_args": {"rank": 4}},
                "rewards": [{"class_path": "policies.Length"}],
                "num_answers": 4,
                "num_parts": 2 // devices,
                "num_iterations": 2,
                # Not Adam, which divides by the gradient: of what is nearly 0 it makes steps of any size, and of
                # the order in which two devices add up, 1e-8, so a difference of 1e-8 * lr / eps.
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.02}},
                **changes,
            },
        },
        "data": {
            "class_path": "PromptData",
            "init_args": {
                "corpora": [{"class_path": "PromptRecords", "init_args": {"path": prompts_in(root, 12).path}}],
                "max_length": 96,
                "max_new_tokens": 6,
                "micro_batch_size": 4 // devices,
                "validation_fraction": 0.25,
            },
        },
        "trainer": {
            "max_steps": 4,
            "accelerator": "cpu",
            "devices": devices,
            "strategy": "auto" if devices == 1 else "ddp_find_unused_parameters_true" if of_ppo else "ddp",
            "accumulate_grad_batches": (2 if of_ppo else 1) * 2 // devices,
            "num_sanity_val_steps": -1,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
        },
        "samples": {"count": 0},
    }
    file = root / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    return ["fit", "--config", str(file)]


def curves(root: Path, name: str) -> dict[str, list[float]]:
    (run,) = (root / "runs").glob(f"{name}-2*")
    events = EventAccumulator(str(run))
    events.Reload()
    wanted = [tag for tag in events.Tags()["scalars"] if tag.startswith(("train/", "val/"))]
    return {tag: [event.value for event in events.Scalars(tag)] for tag in wanted}


def weights(root: Path, name: str) -> dict[str, torch.Tensor]:
    (run,) = (root / "runs").glob(f"{name}-2*")
    content: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    found: dict[str, torch.Tensor] = content["state_dict"]
    return found


OPTIONS: dict[str, dict[str, Any]] = {
    "rloo": {},
    "grpo": {"algorithm": "grpo", "scale": "batch", "kl": "loss"},
    "ppo": {
        "stage": "PPO",
        "reward_norm": "mean_std",
        "target_kl": 0.01,
        "kl_horizon": 50,
    },
}


def test_two_processes_learn_what_one_does(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """In RLOO; with a spread over the answers of both, in GRPO; and in PPO, where each has its own values."""
    checkpoint = tiny("baichuan-7b")
    jobs = [
        Job(words(tmp_path, checkpoint, f"{name}_2", devices=2, **changes), [0, 0]) for name, changes in OPTIONS.items()
    ]
    log = tmp_path / "log.txt"
    agent = start(
        launch, jobs, 2, 1, 0, free_port(), log=tmp_path / "log.txt", environment={"GLOO_SOCKET_IFNAME": "lo"}
    )
    agent.join()
    assert agent.exitcode == 0, log.read_text()[-4000:]
    for name, changes in OPTIONS.items():
        assert main(words(tmp_path, checkpoint, f"{name}_1", devices=1, **changes)) == 0
        mine, theirs = (curves(tmp_path, f"{name}_{devices}") for devices in (2, 1))
        assert mine.keys() == theirs.keys()
        for tag, values in theirs.items():
            # A share of tokens beyond a border differs by those that stand at it.
            assert mine[tag] == pytest.approx(values, abs=0.05 if "clip" in tag else 2e-5, rel=2e-5), tag
        of_two, of_one = (weights(tmp_path, f"{name}_{devices}") for devices in (2, 1))
        moved = [weight for key, weight in of_one.items() if "lora_B" in key and ".reference" not in key]
        assert max(float(weight.abs().max()) for weight in moved) > 1e-3  # from 0, a thousand times what may differ
        torch.testing.assert_close(of_two, of_one, rtol=0, atol=1e-6)
