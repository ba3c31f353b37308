"""Kills runs at random moments, lets them go on, and compares them with one that was never killed.

Every run is a fork of this process, which has imported everything: that takes most of the time of a start.
"""

import argparse
import math
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_sft.__main__ import main

DEMO = Path(__file__).parents[2] / "lit_sft" / "demo"
TUNINGS: dict[str, dict[str, Any]] = {
    "LoRA": {"class_path": "LoRA", "init_args": {"rank": 4, "dropout": 0.1}},
    "QLoRA": {"class_path": "QLoRA", "init_args": {"rank": 4, "dropout": 0.1, "quant_type": "nf4"}},
    # The families of this time have no dropout outside of adapters.
    "Full": {"class_path": "Full"},
    "DPO-LoRA": {"class_path": "LoRA", "init_args": {"dropout": 0.0}},
    "DPO-Full": {"class_path": "Full"},
    "Reward-LoRA": {"class_path": "LoRA", "init_args": {"dropout": 0.0}},
}
"""The first part of a name is the stage, if it is another one: DPO with LoRA begins with an adapter, its reference."""

IMPORTED = ("lit_sft.cli.fit", "peft", "bitsandbytes", "torch.utils.tensorboard")
ENDS = ("starting", "training", "saving", "done")
CURVES = ("train/loss", "train/learning_rate", "train/gradient_norm", "val/loss")


def write_config(work: Path, tuning: str, ranks: int) -> str:
    is_dpo, is_reward = tuning.startswith("DPO"), tuning.startswith("Reward")
    config: dict[str, Any] = {
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
                "max_length": 256, "micro_batch_size": 2 // ranks, "packing": True,
                "num_workers": 2, "validation_fraction": 0.05,
            },
        },
        "trainer": {
            "max_epochs": 3, "accumulate_grad_batches": 2, "gradient_clip_val": 1.0, "deterministic": True,
            "accelerator": "cpu", "devices": ranks, "strategy": "ddp" if ranks > 1 else "auto",
            "val_check_interval": 0.3, "num_sanity_val_steps": -1,
            "log_every_n_steps": 1, "enable_progress_bar": False,
        },
        "samples": {"count": 1},
    }  # fmt: skip
    if is_dpo:
        config["model"]["class_path"] = "Preference"
        config["model"]["init_args"]["objective"] = {"class_path": "DPO"}
        if tuning == "DPO-LoRA":
            config["model"]["init_args"]["tuning"]["init_args"]["adapter"] = str(first_adapter(work))
    if is_reward:
        config["model"]["class_path"] = "Reward"
        del config["model"]["init_args"]["generation"], config["samples"]
    if is_dpo or is_reward:
        read_pairs(config)
    file = work / f"{tuning}.yaml"
    file.write_text(yaml.safe_dump(config))
    return str(file)


def read_pairs(config: dict[str, Any]) -> None:
    config["data"]["class_path"] = "PreferenceData"
    pairs = {"class_path": "AlpacaPairs", "init_args": {"path": str(DEMO / "preference_train.jsonl")}}
    config["data"]["init_args"]["corpora"] = [pairs]
    # Enough to cross an epoch; more would only repeat what takes most of the time, the starts.
    config["trainer"] |= {"max_epochs": 2, "val_check_interval": 0.5}


def first_adapter(work: Path) -> Path:
    """An adapter that has learned something, made when first asked for."""
    runs = work / "first"
    if not runs.exists():
        fork = os.fork()  # a process that has trained cannot fork
        if fork == 0:
            short = [
                "--trainer.max_epochs",
                "1",
                "--runs",
                str(runs),
                "--model.init_args.tuning.init_args.dropout",
                "0",
            ]
            os._exit(main(["fit", "--config", write_config(work, "LoRA", 1), *short]))
        assert os.waitpid(fork, 0)[1] == 0
    (run,) = runs.iterdir()
    return run / "adapter"


@dataclass
class Case:
    """One row of the table: a kind of run, and where its starts write."""

    config: str
    ranks: int
    folder: Path
    arguments: list[str] = field(default_factory=list)

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    def start(self) -> list[int]:
        """The processes of a run as torchrun would start them, each with its workers a process group."""
        assert len(os.listdir("/proc/self/task")) == 1, "threads do not survive a fork"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = []
        for rank in range(self.ranks):
            process = os.fork()
            if process == 0:
                self._run(rank, port)
            os.setpgid(process, process)
            started.append(process)
        return started

    def _run(self, rank: int, port: int) -> None:
        os.setpgid(0, 0)
        if self.ranks > 1:
            own, all_ranks = dict.fromkeys(("RANK", "LOCAL_RANK"), rank), ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
            values = own | dict.fromkeys(all_ranks, self.ranks) | {"GROUP_RANK": 0, "MASTER_PORT": port}
            os.environ |= {name: str(value) for name, value in values.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "x"}
        output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = 1
        try:
            # A cache of its own: preparing the data is killed too.
            where = ["--runs", str(self.runs), "--data.init_args.cache", str(self.folder / "cache")]
            code = main(["fit", "--config", self.config, *where, *self.arguments])
        finally:
            sys.stdout.flush()
            os._exit(code)

    def has_written(self, pattern: str, since: float) -> bool:
        """Whether there is such a file of this start; one that was killed may have left its own."""
        for path in self.runs.glob(f"*/checkpoints/{pattern}"):
            try:
                if path.stat().st_mtime > since:
                    return True
            except FileNotFoundError:  # it got its name just now
                continue
        return False


def has_ended(process: int) -> bool:
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def run_killed(case: Case, seconds: float | None, chance: random.Random) -> str:
    """One start of a run: `done`, or at what it was killed."""
    since = time.time()
    processes = case.start()
    moment = math.inf if seconds is None else time.time() + chance.uniform(0, seconds)
    in_save = chance.random() < 0.5
    while True:
        if any(has_ended(process) for process in processes):
            codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
            assert not any(codes), f"{codes}, see {case.log}"
            return "done"
        if time.time() > moment and (not in_save or case.has_written("*.partial", since)):
            for process in chance.sample(processes, case.ranks):
                os.killpg(process, signal.SIGKILL)
            for process in processes:
                os.waitpid(process, 0)
            if case.has_written("*.partial", since):
                return "saving"
            return "training" if case.has_written("last.ckpt", since) else "starting"
        time.sleep(0.0005)


def outcome(run: Path) -> dict[str, torch.Tensor]:
    """Curves as pairs of step and value, what trained, and its moments."""
    events = EventAccumulator(str(run))
    events.Reload()
    # A step that is followed by a save is logged twice.
    points = {name: sorted({(event.step, event.value) for event in events.Scalars(name)}) for name in CURVES}
    curves = {name: torch.tensor(values, dtype=torch.float64) for name, values in points.items()}
    stored = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    moments = {
        f"{number}.{name}": value
        for number, state in stored["optimizer_states"][0]["state"].items()
        for name, value in state.items()
    }
    return curves | stored["state_dict"] | moments


def difference(expected: dict[str, torch.Tensor], actual: dict[str, torch.Tensor]) -> float:
    """Largest absolute difference; infinite if not the same steps or weights are there."""
    if {name: value.shape for name, value in expected.items()} != {name: value.shape for name, value in actual.items()}:
        return math.inf
    return float(
        torch.stack([(expected[name].double() - actual[name].double()).abs().max() for name in expected]).max()
    )


def measure(work: Path, tuning: str, ranks: int, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    config = write_config(work, tuning, ranks)
    whole = Case(config, ranks, work / f"whole-{tuning}-{ranks}")
    killed = Case(config, ranks, work / f"killed-{tuning}-{ranks}", ["--resume", "auto"])
    for folder in (whole.folder, killed.folder):
        shutil.rmtree(folder, ignore_errors=True)
    before = time.monotonic()
    assert run_killed(whole, None, chance) == "done"
    seconds = time.monotonic() - before
    (reference,) = whole.runs.iterdir()
    expected = outcome(reference)
    ends: Counter[str] = Counter()
    differences = []
    while True:
        # The first start has none to go on with; so has one after a kill before the first checkpoint.
        left = kills - (ends.total() - ends["done"])
        how = run_killed(killed, 0.35 * seconds if left else None, chance)
        ends[how] += 1
        if how == "done":
            finished = [run for run in killed.runs.iterdir() if (run / "summary.json").is_file()]
            differences += [difference(expected, outcome(run)) for run in finished]
            if not left:
                break
            shutil.rmtree(killed.folder)
    worst = float(torch.tensor(differences).max())
    steps = len(expected["train/loss"])
    row = [tuning, ranks, steps, kills, *(ends[how] for how in ENDS), f"{worst:.3g}"]
    print("|", " | ".join(map(str, row)), "|", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path("/tmp/resume_kill"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tunings", nargs="+", default=list(TUNINGS))
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    options = parser.parse_args()
    for module in IMPORTED:
        import_module(module)
    options.work.mkdir(parents=True, exist_ok=True)
    model = options.work / "model"
    if not model.exists():
        main(["tiny", "--output", str(model), "--hidden-size", "64", "--intermediate-size", "128",
              "--num-layers", "2", "--num-heads", "2"])  # fmt: skip
    print("| tuning | ranks | steps | kills | starting | training | saving | finished | largest difference |")
    print("|---" * 9 + "|")
    for ranks in options.ranks:
        for tuning in options.tunings:
            measure(options.work, tuning, ranks, options.kills, options.seed)
