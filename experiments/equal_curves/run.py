"""Trains the same in different ways, and compares the curves and the weights with those of the plain way.

A step takes in the whole corpus, so that it has the same examples however they are put into rows and shared out.
"""

import argparse
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_sft.__main__ import leave, main

DEMO = Path(__file__).parents[2] / "lit_sft" / "demo"
NUM_RECORDS, NUM_STEPS = 150, 30
TOLERANCE = 1e-5
TUNINGS: dict[str, dict[str, Any]] = {
    "Full": {"class_path": "Full"},
    "LoRA": {"class_path": "LoRA", "init_args": {"rank": 4}},
    "QLoRA": {"class_path": "QLoRA", "init_args": {"rank": 4}},
}
# Adam divides rounding by itself where a gradient is as small as its usual eps.
OPTIMIZERS = {tuning: {"lr": 0.003 if tuning == "Full" else 0.005, "eps": 1e-5} for tuning in TUNINGS}
PLAIN = "plain"
CHECKPOINTING, COMPILE = {"gradient_checkpointing": True}, {"compile": True}
DDP, FSDP2 = ({"strategy": strategy, "devices": 2} for strategy in ("ddp", "fsdp2"))
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    PLAIN: {},
    "gradient checkpointing": {"model": CHECKPOINTING},
    "compile": {"model": COMPILE},
    "compile, gradient checkpointing": {"model": COMPILE | CHECKPOINTING},
    "no packing": {"data": {"packing": False}},
    "no packing, compile": {"data": {"packing": False}, "model": COMPILE},
    "ddp, 2 processes": {"trainer": DDP},
    "fsdp2, 2 processes": {"trainer": FSDP2},
    "ddp, compile, gradient checkpointing": {"trainer": DDP, "model": COMPILE | CHECKPOINTING},
    "fsdp2, compile, gradient checkpointing": {"trainer": FSDP2, "model": COMPILE | CHECKPOINTING},
}


def write_config(work: Path, name: str, tuning: str, way: dict[str, dict[str, Any]]) -> str:
    config = {
        "seed_everything": 1,
        "name": name,
        "runs": str(work / "runs"),
        "model": {
            "class_path": "SFT",
            "init_args": {
                "checkpoint": str(work / "model"),
                "tuning": TUNINGS[tuning],
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": OPTIMIZERS[tuning]},
                "generation": {"class_path": "Greedy", "init_args": {"max_new_tokens": 4}},
                **way.get("model", {}),
            },
        },
        "data": {
            "class_path": "SFTData",
            "init_args": {
                "corpora": [
                    {"class_path": "Belle", "init_args": {"path": str(DEMO / "belle_train.json"), "count": NUM_RECORDS}}
                ],
                "max_length": 256, "micro_batch_size": 4, "packing": True, "num_workers": 0, "validation_fraction": 0.1,
                "cache": str(work / "cache"),
                **way.get("data", {}),
            },
        },
        "trainer": {
            "max_epochs": NUM_STEPS, "accumulate_grad_batches": 1000, "gradient_clip_val": 1.0, "accelerator": "cpu",
            "devices": 1, "check_val_every_n_epoch": 5, "log_every_n_steps": 1, "num_sanity_val_steps": -1,
            "enable_progress_bar": False,
            **way.get("trainer", {}),
        },
        "samples": {"count": 1},
    }  # fmt: skip
    file = work / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    return str(file)


def fit_all(files: list[str]) -> None:
    """One after the other in this process, or in each process of its group."""
    for file in files:
        torch._dynamo.reset()  # as if each had a process of its own
        if main(["fit", "--config", file]):
            sys.exit(f"{file} failed")


def outcome(run: Path) -> dict[str, torch.Tensor]:
    """Curves, and what trained."""
    events = EventAccumulator(str(run))
    events.Reload()
    tags = {"loss": "train/loss", "held-out loss": "val/loss", "gradient norm": "train/gradient_norm"}
    curves = {
        name: torch.tensor([event.value for event in events.Scalars(tag)], dtype=torch.float64)
        for name, tag in tags.items()
    }
    trained = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return curves | {"weights": torch.cat([trained[name].flatten() for name in sorted(trained)]).double()}


def rows(work: Path, tuning: str, ways: list[str]) -> Iterator[str]:
    """Lines of the table."""
    found = {way: outcome(max((work / "runs").glob(f"{name_of(tuning, way)}-2*"))) for way in ways}
    plain = found[PLAIN]
    for way, ended in found.items():
        losses = f"{ended['loss'][0]:.5f} | {ended['loss'][-1]:.5f}"
        differences = [float((ended[name] - plain[name]).abs().max()) for name in plain]
        is_equal = "" if way == PLAIN else "yes" if max(differences[:2]) <= TOLERANCE else "no"
        yield f"| {tuning} | {way} | {losses} | {' | '.join(f'{d:.1e}' for d in differences)} | {is_equal} |"


def name_of(tuning: str, way: str) -> str:
    return f"{tuning} {way}".lower().replace(", ", "-").replace(" ", "-")


def train(work: Path, tunings: list[str], ways: list[str]) -> None:
    alone, together = [], []
    for tuning in tunings:
        for way in ways:
            file = write_config(work, name_of(tuning, way), tuning, WAYS[way])
            (together if "trainer" in WAYS[way] else alone).append(file)
    fit_all(alone)
    if together:
        jobs = work / "jobs.json"
        jobs.write_text(json.dumps(together))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        subprocess.run([*launcher, __file__, "--jobs", str(jobs)], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path("/tmp/equal_curves"))
    parser.add_argument("--family", default="baichuan-7b")
    parser.add_argument("--tunings", nargs="+", default=list(TUNINGS))
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--jobs", type=Path, help="what this program gives its own processes")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.jobs:
        fit_all(json.loads(options.jobs.read_text()))
        leave(0)
    options.work.mkdir(parents=True, exist_ok=True)
    if not (options.work / "model").exists():
        main(["tiny", "--family", options.family, "--output", str(options.work / "model"), "--hidden-size", "64",
              "--intermediate-size", "128", "--num-layers", "2", "--num-heads", "2"])  # fmt: skip
    ways = [PLAIN, *(way for way in options.ways if way != PLAIN)]
    train(options.work, options.tunings, ways)
    print("| tuning | way | first loss | last loss | loss | held-out loss | gradient norm | weights | equal |")
    print("|---" * 9 + "|")
    for tuning in options.tunings:
        print(*rows(options.work, tuning, ways), sep="\n")
