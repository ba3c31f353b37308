"""Kills runs at random moments, lets them go on, and compares them with one that was never killed."""

import argparse
import math
import os
import random
import shutil
import signal
import socket
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_sft.__main__ import main
from lit_sft.families._tiny import tiny

DEMO = Path(__file__).parents[2] / "lit_sft" / "demo"
TUNINGS: dict[str, dict[str, Any]] = {
    "LoRA": {"class_path": "LoRA", "init_args": {"rank": 4, "dropout": 0.1}},
    "QLoRA": {"class_path": "QLoRA", "init_args": {"rank": 4, "dropout": 0.1, "quant_type": "nf4"}},
    # The families of this time have no dropout outside of adapters.
    "Full": {"class_path": "Full"},
}
CURVES = ("train/loss", "train/learning_rate", "train/gradient_norm", "val/loss")


def write_config(work: Path, tuning: str, ranks: int) -> str:
    config = {
        "seed_everything": 1,
        "name": tuning.lower(),
        "checkpoints": {"every_minutes": 0.005},
        "model": {
            "class_path": "SFT",
            "init_args": {
                "checkpoint": str(work / "model"),
                "tuning": TUNINGS[tuning],
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003, "weight_decay": 0.1}},
                # Answers are sampled, so that they would shift the random numbers of training.
                "generation": {"class_path": "TopP", "init_args": {"max_new_tokens": 4}},
            },
        },
        "data": {
            "class_path": "SFTData",
            "init_args": {
                "corpora": [
                    {"class_path": "Belle", "init_args": {"path": str(DEMO / "belle_train.json")}},
                    {"class_path": "Firefly", "init_args": {"path": str(DEMO / "firefly_train.jsonl")}},
                ],
                "max_length": 256,
                "micro_batch_size": 2 // ranks,
                "num_workers": 2,
                "validation_fraction": 0.05,
                "cache": str(work / "cache"),
            },
        },
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "devices": ranks,
            "strategy": "ddp" if ranks > 1 else "auto",
            "deterministic": True,
            "accumulate_grad_batches": 2,
            "gradient_clip_val": 1.0,
            "val_check_interval": 0.3,
            "num_sanity_val_steps": -1,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
        },
        "samples": {"count": 1},
    }  # fmt: skip
    file = work / f"{tuning}.yaml"
    file.write_text(yaml.safe_dump(config))
    return str(file)


def start(arguments: list[str], ranks: int, log: Path) -> list[int]:
    """The processes of a run, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(ranks):
        process = os.fork()
        if process:
            started.append(process)
            continue
        os.setpgid(0, 0)
        if ranks > 1:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "x", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": str(ranks),
            }  # fmt: skip
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = 1
        try:
            code = main(arguments)
        finally:
            sys.stdout.flush()
            os._exit(code)
    return started


def ended(process: int) -> int | None:
    """Exit code of a process; None while it runs."""
    done, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def end(processes: list[int]) -> None:
    for process in processes:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def is_saving(runs: Path) -> bool:
    return any(runs.glob("*/checkpoints/*.partial"))


def run_killed(
    arguments: list[str], runs: Path, ranks: int, log: Path, seconds: float | None, chance: random.Random
) -> str:
    """One start of a run: `done`, or at what it was killed."""
    processes = start(arguments, ranks, log)
    moment = math.inf if seconds is None else time.monotonic() + chance.uniform(0, seconds)
    in_save = chance.random() < 0.5
    while True:
        codes = [ended(process) for process in processes]
        if any(code is not None for code in codes):
            running = [process for process, code in zip(processes, codes, strict=True) if code is None]
            codes = [code for code in codes if code is not None]
            codes += [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in running]
            assert codes == [0] * ranks, f"{codes}, see {log}"
            return "done"
        saving = is_saving(runs)
        if time.monotonic() > moment and (saving or not in_save):
            end(chance.sample(processes, ranks))
            return "save" if is_saving(runs) else "other"
        time.sleep(0.0005)


def outcome(run: Path) -> tuple[dict[str, dict[int, float]], dict[str, torch.Tensor]]:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    curves = {name: {event.step: event.value for event in events.Scalars(name)} for name in CURVES}
    stored = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    moments = {
        f"{number}.{name}": value
        for number, state in stored["optimizer_states"][0]["state"].items()
        for name, value in state.items()
    }
    return curves, stored["state_dict"] | moments


def difference(expected: Any, actual: Any) -> float:
    """Largest absolute difference; infinite if not the same steps or weights are there."""
    worst = 0.0
    for left, right in zip(expected, actual, strict=True):
        for name in left:
            if left[name].keys() != right[name].keys() if isinstance(left[name], dict) else left.keys() != right.keys():
                return math.inf
            if isinstance(left[name], dict):
                worst = max([worst, *(abs(left[name][step] - right[name][step]) for step in left[name])])
            else:
                worst = max(worst, float((left[name].double() - right[name].double()).abs().max()))
    return worst


def measure(work: Path, tuning: str, ranks: int, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    config = write_config(work, tuning, ranks)
    log = work / f"{tuning}-{ranks}.log"
    whole, killed = work / f"whole-{tuning}-{ranks}", work / f"killed-{tuning}-{ranks}"
    for folder in (whole, killed):
        shutil.rmtree(folder, ignore_errors=True)
    before = time.monotonic()
    command = ["fit", "--config", config, "--runs"]
    assert run_killed([*command, str(whole)], whole, ranks, log, None, chance) == "done"
    seconds = time.monotonic() - before
    (reference,) = whole.iterdir()
    expected = outcome(reference)
    ends: list[str] = []
    starts = 0
    worst = 0.0
    while True:
        # The first start has none to go on with; so has one after a kill before the first checkpoint.
        left = kills - len([end for end in ends if end != "done"])
        ends.append(run_killed([*command, str(killed), "--resume", "auto"], killed, ranks, log,
                               0.7 * seconds if left else None, chance))  # fmt: skip
        starts += 1
        if ends[-1] == "done":
            finished = [run for run in killed.iterdir() if (run / "summary.json").is_file()]
            worst = max(worst, *(difference(expected, outcome(run)) for run in finished))
            shutil.rmtree(killed)
            if not left:
                break
    steps = len(expected[0]["train/loss"])
    print(
        f"| {tuning} | {ranks} | {steps} | {kills} | {ends.count('save')} | {ends.count('done')} | {worst:.3g} |",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path("/tmp/resume_kill"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tunings", nargs="+", default=list(TUNINGS))
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    options = parser.parse_args()
    import_module("lit_sft.cli")  # once: every run is a fork of this process
    options.work.mkdir(parents=True, exist_ok=True)
    if not (options.work / "model").exists():
        tiny(str(options.work / "model"), hidden_size=64, intermediate_size=128, num_layers=2, num_heads=2)
    print(
        "| tuning | ranks | steps | kills | in a save | runs finished | largest difference |\n"
        "|---|---|---|---|---|---|---|"
    )
    for ranks in options.ranks:
        for tuning in options.tunings:
            measure(options.work, tuning, ranks, options.kills, options.seed)
