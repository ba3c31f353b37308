"""One process, two, and four on two hosts train the same: the same steps, weights, measures and answers."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml
from lightning import Trainer
from rankings import ranked, written
from safetensors.torch import load_file
from several_fits import Job, launch
from started import start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_sft.__main__ import main
from lit_sft.distributed.fsdp2 import FSDP2
from lit_sft.distributed.processes import free_port
from lit_sft.errors import ConfigError
from lit_sft.stages._rescaling import rescale_progress
from lit_sft.stages.sft import SFT
from lit_sft.tuning.full import Full

pytestmark = [
    # Of the callback by which these tests save in the middle of an epoch.
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]

TUNINGS = {
    "Full": {"class_path": "Full"},
    "LoRA": {"class_path": "LoRA", "init_args": {"rank": 4}},
    "QLoRA": {"class_path": "QLoRA", "init_args": {"rank": 4}},
}
STAGES: dict[str, dict[str, Any]] = {
    "SFT": {"generation": {"class_path": "Greedy", "init_args": {"max_new_tokens": 4}}},
    "Reward": {"centering": 0.01},
    "Preference": {"objective": {"class_path": "DPO", "init_args": {"sft_weight": 0.1}}},
}
ROWS_OF_A_STEP = 8
ON_FOUR = (("LoRA", "ddp"), ("LoRA", "fsdp2"), ("Full", "fsdp2"), ("QLoRA", "fsdp2"))
"""DDP sees of a tuning only what it trains: adapters here, all weights on pairs. FSDP2 shards each in its own way."""

ON_PAIRS = (
    ("Reward", "LoRA", "fsdp2"),
    ("Preference", "LoRA", "ddp"),
    ("Preference", "Full", "ddp"),
    ("Preference", "Full", "fsdp2"),
)
SAVED_STEP = 3
"""In the middle of the second epoch."""


def when(callback: str, **arguments: Any) -> list[str]:
    return ["--trainer.callbacks", json.dumps([{"class_path": f"fakes.{callback}", "init_args": arguments}])]


class Runs:
    """A folder of runs of the same configuration on different devices."""

    def __init__(self, root: Path, tiny: Callable[[str], Path]) -> None:
        self.root = root
        self.tiny = tiny
        # Of very different lengths. Neither the rows of an epoch nor the held-out ones can be shared out evenly.
        sums = [(a, b) for a in range(1, 8) for b in range(1, 5)]
        records = [
            {"instruction": f"{a}加{b}是几？" * (1 + a * b % 3), "input": "", "output": f"是{a + b}。" * (1 + a % 5)}
            for a, b in sums
        ]
        (root / "belle.json").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
        pairs = [ranked(f"{a}加{b}是几？", f"是{a + b}。" * (1 + a % 3), "不知道" * (1 + b % 3)) for a, b in sums[:22]]
        written(root / "pairs.jsonl", pairs)

    def fit(
        self,
        name: str,
        tuning: str,
        strategy: str = "auto",
        *,
        devices: int = 1,
        nodes: int = 1,
        rows: int = 1,
        family: str = "baichuan-7b",
        stage: str = "SFT",
    ) -> list[str]:
        """The words of a fit in which the rows of a step are shared out in this way."""
        accumulated, left = divmod(ROWS_OF_A_STEP, devices * nodes * rows)
        assert not left
        config = {
            "seed_everything": 7,
            "runs": str(self.root / "runs"),
            "model": {
                "class_path": stage,
                "init_args": {
                    **STAGES[stage],
                    "checkpoint": str(self.tiny(family)),
                    "tuning": TUNINGS[tuning],
                    # Adam divides rounding by itself where a gradient is as small as that.
                    "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003, "eps": 1e-5}},
                    "gradient_checkpointing": True,
                },
            },
            "data": {
                "class_path": "SFTData" if stage == "SFT" else "PreferenceData",
                "init_args": {
                    "corpora": [self.corpus(stage)],
                    "max_length": 72,
                    "micro_batch_size": rows,
                    "packing": True,
                    "validation_fraction": 0.18,
                },
            },
            "trainer": {
                "max_epochs": 2,
                "accelerator": "cpu",
                "devices": devices,
                "num_nodes": nodes,
                "strategy": strategy,
                "accumulate_grad_batches": accumulated,
                "gradient_clip_val": 0.5,
                "num_sanity_val_steps": -1,
                "log_every_n_steps": 1,
                "enable_progress_bar": False,
                "callbacks": [
                    {
                        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                        "init_args": {"every_n_train_steps": SAVED_STEP, "save_top_k": -1, "filename": "{step}"},
                    }
                ],
            },
            "samples": {"count": 2},
        }
        file = self.root / f"{name}.yaml"
        file.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
        return ["fit", "--config", str(file)]

    def corpus(self, stage: str) -> dict[str, Any]:
        if stage == "SFT":
            return {"class_path": "Belle", "init_args": {"path": str(self.root / "belle.json")}}
        return {"class_path": "rankings.Rankings", "init_args": {"path": str(self.root / "pairs.jsonl")}}

    def predict(self, name: str, *options: str) -> list[str]:
        """The words of a predict in so many batches that they cannot be shared out evenly."""
        return ["predict", "--run", str(self.folder(name)), "--predictions.token_budget", "60",
                "--trainer.num_nodes", "1", *options]  # fmt: skip

    def folder(self, name: str) -> Path:
        (found,) = (self.root / "runs").glob(f"{name}-2*")
        return found

    def saved(self, name: str) -> str:
        return str(self.folder(name) / "checkpoints" / f"step={SAVED_STEP}.ckpt")

    def points(self, name: str, tag: str) -> list[tuple[int, float]]:
        events = EventAccumulator(str(self.folder(name)))
        events.Reload()
        return [(event.step, event.value) for event in events.Scalars(tag)]

    def curve(self, name: str, tag: str) -> list[float]:
        return [value for _, value in self.points(name, tag)]

    def end(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = torch.load(self.folder(name) / "checkpoints" / "last.ckpt", weights_only=True)
        return content

    def launch(self, jobs: list[Job], *, devices: int, nodes: int) -> None:
        """Run jobs in processes of `nodes` loopback addresses."""
        port = free_port()
        agents = []
        for host in range(nodes):
            environment = {"GLOO_SOCKET_IFNAME": "lo", "XDG_CACHE_HOME": str(self.root / f"cache-{host}")}
            log = self.root / f"log-{nodes}x{devices}-{host}.txt"
            agents.append((start(launch, jobs, devices, nodes, host, port, log=log, environment=environment), log))
        for agent, _ in agents:
            agent.join()
        said = "\n".join(log.read_text()[-4000:] for _, log in agents)
        assert [agent.exitcode for agent, _ in agents] == [0] * nodes, said


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[str], Path]) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("devices"), tiny)
    wide = [
        Job(runs.fit(f"{tuning}_{strategy}_4", tuning, strategy, devices=2, nodes=2), [0] * 4)
        for tuning, strategy in ON_FOUR
    ]
    runs.launch(wide, devices=2, nodes=2)
    two: dict[str, Any] = {"strategy": "fsdp2", "devices": 2}
    dying, stopped = (runs.fit(name, "LoRA", "ddp", devices=2) for name in ("dying_2", "stopped_2"))
    narrow = [
        # First, for a process that has trained cannot fork.
        *(
            Job([*dying, *when("Kill", step=2, rank=rank)], [-signal.SIGKILL if r == rank else 1 for r in (0, 1)],
                free_port())
            for rank in (0, 1)
        ),
        Job(runs.fit("LoRA_ddp_2", "LoRA", "ddp", devices=2), [0, 0]),
        Job([*stopped, *when("Ask", step=3, rank=1)], [128 + signal.SIGTERM] * 2),
        Job([*stopped, "--resume", "auto"], [0, 0]),
        Job([*runs.fit("LoRA_resumed_2", "LoRA", **two), "--ckpt_path", runs.saved("LoRA_ddp_4")], [0, 0]),
        Job([*runs.fit("Full_resumed_2", "Full", **two), "--ckpt_path", runs.saved("Full_fsdp2_4")], [0, 0]),
        Job(runs.fit("tied_2", "Full", **two, family="chatglm-6b"), [0, 0]),
        Job(["predict", "--run", str(runs.folder("QLoRA_fsdp2_4")), "--trainer.num_nodes", "1"], [0, 0]),
        Job(runs.predict("LoRA_ddp_4"), [0, 0]),
        *(
            Job(runs.fit(f"{stage}_{tuning}_{strategy}_2", tuning, strategy, devices=2, stage=stage), [0, 0])
            for stage, tuning, strategy in ON_PAIRS
        ),
        Job([*runs.fit("harmful_2", "LoRA", **two), "--model.init_args.optimizer.init_args.lr", "1e30"], [2, 2]),
    ]  # fmt: skip
    runs.launch(narrow, devices=2, nodes=1)
    for tuning in TUNINGS:
        assert main(runs.fit(f"{tuning}_1", tuning)) == 0
    assert main(runs.fit("tied_1", "Full", family="chatglm-6b")) == 0
    for stage, tuning in dict.fromkeys(pair[:2] for pair in ON_PAIRS):
        assert main(runs.fit(f"{stage}_{tuning}_1", tuning, stage=stage)) == 0
    return runs


def assert_same(runs: Runs, name: str, other: str, *, from_step: int = 0, measure: str = "token_accuracy") -> None:
    """The same curves from that step on, the same weights and the same gradients."""
    for tag in ("train/loss", f"train/{measure}"):
        assert runs.curve(name, tag) == pytest.approx(runs.curve(other, tag)[from_step:], abs=1e-5), tag
    # The root of a hundred thousand squares, which float32 adds up in another order.
    norms = runs.curve(other, "train/gradient_norm")[from_step:]
    assert runs.curve(name, "train/gradient_norm") == pytest.approx(norms, rel=2e-5)
    measured = runs.curve(name, "val/loss")
    assert measured == pytest.approx(runs.curve(other, "val/loss")[-len(measured) :], abs=1e-5)
    mine, theirs = runs.end(name), runs.end(other)
    torch.testing.assert_close(mine["state_dict"], theirs["state_dict"], rtol=0, atol=1e-5)
    # The running mean of the gradients is as good as the gradients of all steps.
    kept, wanted = (end["optimizer_states"][0]["state"] for end in (mine, theirs))
    torch.testing.assert_close(kept, wanted, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("tuning", "strategy"), ON_FOUR)
def test_four_processes_on_two_hosts_train_as_one(runs: Runs, tuning: str, strategy: str) -> None:
    """Four with two micro-batches each, against one with eight; some have no data left in the last of an epoch."""
    assert_same(runs, f"{tuning}_{strategy}_4", f"{tuning}_1")


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "tuning", "strategy"), ON_PAIRS)
def test_two_processes_learn_from_pairs_as_one_does(runs: Runs, stage: str, tuning: str, strategy: str) -> None:
    """Policy, reference and score are the same numbers whether weights are whole or sharded."""
    measure = "margin" if stage == "Reward" else "rewards/margins"
    assert_same(runs, f"{stage}_{tuning}_{strategy}_2", f"{stage}_{tuning}_1", measure=measure)


@pytest.mark.slow
def test_two_processes_with_four_micro_batches_and_one_with_eight_rows_at_once_train_as_one(runs: Runs) -> None:
    assert_same(runs, "LoRA_ddp_2", "LoRA_1")
    assert main(runs.fit("LoRA_at_once", "LoRA", rows=ROWS_OF_A_STEP)) == 0
    assert_same(runs, "LoRA_at_once", "LoRA_1")


@pytest.mark.slow
def test_embedding_and_head_that_are_one_matrix_stay_one(runs: Runs) -> None:
    assert_same(runs, "tied_2", "tied_1")


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["LoRA", "Full"])
def test_a_run_of_four_goes_on_with_two_and_with_one(runs: Runs, tuning: str) -> None:
    """In the middle of an epoch; under another strategy in the case of LoRA."""
    saved = runs.saved(f"{tuning}_fsdp2_4")
    assert main([*runs.fit(f"{tuning}_resumed_1", tuning), "--ckpt_path", saved]) == 0
    for devices in (1, 2):
        assert_same(runs, f"{tuning}_resumed_{devices}", f"{tuning}_1", from_step=SAVED_STEP)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Full_fsdp2_4", "LoRA_fsdp2_4", "QLoRA_fsdp2_4"])
def test_what_sharded_weights_export_and_answer_is_what_whole_ones_do(runs: Runs, name: str) -> None:
    tuning = name.partition("_")[0]
    mine, theirs = (runs.folder(run) for run in (name, f"{tuning}_1"))
    exported = "model/model.safetensors" if tuning == "Full" else "adapter/adapter_model.safetensors"
    torch.testing.assert_close(load_file(mine / exported), load_file(theirs / exported), rtol=0, atol=1e-5)
    assert [json.loads((run / "summary.json").read_text())["samples"] for run in (mine, theirs)] == [
        json.loads((theirs / "summary.json").read_text())["samples"]
    ] * 2


@pytest.mark.slow
def test_predict_answers_under_sharded_weights_as_under_whole_ones(runs: Runs) -> None:
    assert main(["predict", "--run", str(runs.folder("QLoRA_1"))]) == 0
    mine, theirs = (
        [json.loads(line)["answer"] for line in (runs.folder(name) / "predictions.jsonl").read_text().splitlines()]
        for name in ("QLoRA_fsdp2_4", "QLoRA_1")
    )
    assert mine == theirs
    assert mine


@pytest.mark.slow
def test_two_devices_write_one_file_in_the_order_of_the_prompts(runs: Runs) -> None:
    file = runs.folder("LoRA_ddp_4") / "predictions.jsonl"
    shared_out = file.read_text()
    assert main(runs.predict("LoRA_ddp_4", "--trainer.devices", "1", "--trainer.strategy", "auto")) == 0
    assert file.read_text() == shared_out
    assert shared_out.count("\n") == len(set(shared_out.splitlines())) > 4


@pytest.mark.slow
def test_two_processes_that_one_signal_stops_in_a_step_go_on_together(runs: Runs) -> None:
    """Those of `dying_2`, one of which died, ended too, or the launch would have failed."""
    assert len(json.loads((runs.folder("stopped_2") / "manifest.json").read_text())["resumed"]) == 1
    assert len(runs.end("stopped_2")["random_states"]) == 2
    mine, theirs = (dict(runs.points(name, "train/loss")) for name in ("stopped_2", "LoRA_ddp_2"))
    assert mine == pytest.approx(theirs, abs=1e-6)
    weights = (runs.end(name)["state_dict"] for name in ("stopped_2", "LoRA_ddp_2"))
    torch.testing.assert_close(*weights, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_harmful_step_names_the_records_of_every_process(runs: Runs) -> None:
    log = "".join(file.read_text() for file in runs.root.glob("log-1x2-*.txt"))
    line = next(line for line in log.splitlines() if "loss is nan" in line)
    assert "belle.json:" in line


class TestMistakes:
    @pytest.fixture
    def mistake(
        self, write_config: Callable[..., str], capsys: pytest.CaptureFixture[str]
    ) -> Iterator[Callable[..., str]]:
        def run(**changes: Any) -> str:
            assert main(["fit", "--config", write_config(**changes)]) == 2
            return capsys.readouterr().err

        yield run
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def test_int8_under_fsdp2(self, mistake: Any) -> None:
        tuning = {"class_path": "QLoRA", "init_args": {"rank": 4, "quant_type": "int8"}}
        error = mistake(model={"tuning": tuning}, trainer={"strategy": "fsdp2"})
        assert "fsdp2 does not work here. QLoRA int8" in error
        assert "use quant_type nf4, or strategy ddp" in error

    def test_optimizer_of_bitsandbytes_under_fsdp2(self, mistake: Any) -> None:
        optimizer = {"class_path": "bitsandbytes.optim.AdamW8bit", "init_args": {"lr": 0.01}}
        error = mistake(model={"optimizer": optimizer}, trainer={"strategy": "fsdp2"})
        assert "AdamW8bit of bitsandbytes updates no sharded weight: use torch.optim.AdamW" in error

    def test_half_precision_under_fsdp2(self, tiny_folder: Path) -> None:
        stage = SFT(checkpoint=str(tiny_folder), tuning=Full())
        # A trainer on a CPU would turn it into bf16-mixed.
        stage._trainer = cast(Trainer, SimpleNamespace(strategy=FSDP2(), precision="16-mixed"))
        with pytest.raises(ConfigError, match="use precision bf16-mixed"):
            stage._check_strategy()

    def test_other_ways_of_sharding(self, mistake: Any) -> None:
        strategy = {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}
        assert "ModelParallelStrategy is not supported: set it to fsdp2" in mistake(trainer={"strategy": strategy})
        assert "requires a GPU" in mistake(trainer={"strategy": "fsdp"})

    def test_a_checkpoint_that_so_many_devices_cannot_share(self) -> None:
        progress = {"ready": 3, "started": 3, "processed": 3, "completed": 3}
        checkpoint = {
            "num_devices": 2,
            "loops": {"fit_loop": {"epoch_loop.batch_progress": {"current": progress}}},
            "SFTData": {"num_batches": 3, "epoch": 0},
        }
        with pytest.raises(ConfigError, match="after 3 micro-batches on each of 2 devices, which 4 devices cannot"):
            rescale_progress(checkpoint, "SFTData", 4)
