"""Optimizer steps of a shipped configuration, by the command line, on random weights of the released shape."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning import Callback, LightningModule, Trainer
from shapes import device, make_random, synchronize, write_checkpoint, write_conversations, write_pairs

from lit_sft.callbacks.preflight import Preflight
from lit_sft.cli.fit import main
from lit_sft.preflight.memory import estimate
from lit_sft.preflight.network import measure_network
from lit_sft.preflight.plan import plan_of
from lit_sft.stages._base import Stage

CONFIGS = Path(__file__).parents[2] / "configs"

STEPS = {"real": (2, 6), "tiny": (1, 2)}
"""Optimizer steps before the clock runs, in which kernels are chosen, and those that are timed."""

ROW_LENGTH = {"real": 2048, "tiny": 512}

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}
"""Of dense matrix products in bfloat16, by a word in the name of the device; from the data sheets."""

MODELS = {"baichuan7b": "Baichuan-7B", "baichuan13b": "Baichuan-13B-Base", "moss16b": "moss-moon-003-base"}


class Measured(Exception):  # noqa: N818 - nothing went wrong
    """Enough was seen; what a run writes at its end is not timed."""


class StepMeter(Callback):
    """Times optimizer steps and what they hold in memory, then ends the run."""

    found: ClassVar[dict[str, Any]] = {}
    steps: ClassVar[tuple[int, int]] = STEPS["tiny"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What loading took is not counted."""
        self._seen = self._tokens = self._positions = 0
        self._done = 0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a micro-batch; begin or end with an optimizer step."""
        self._tokens += batch.num_tokens
        self._positions += batch.input_ids.numel()
        if trainer.global_step == self._done:
            return
        self._done = trainer.global_step
        before, timed = self.steps
        if self._done == before:
            synchronize()
            self._began, self._tokens, self._positions = time.perf_counter(), 0, 0
        elif self._done == before + timed:
            synchronize()
            self._end(trainer, pl_module, time.perf_counter() - self._began)

    def _end(self, trainer: Trainer, stage: LightningModule, seconds: float) -> None:
        assert isinstance(stage, Stage)
        config = next(each.config for each in trainer.callbacks if isinstance(each, Preflight))  # type: ignore[attr-defined]
        family = stage.checkpoint.family
        network = measure_network(family)
        plan = plan_of(config, stage.tuning, family, 1, is_gpu=device().type == "cuda")
        speed = self._tokens / seconds
        # Forward and backward to the inputs; the weights' own gradients, too, where they train.
        flops = (6 if plan.tuning.trains_base else 4) * network.num_parameters * speed
        self.found.update(
            seconds_per_step=seconds / self.steps[1],
            tokens_per_second=speed,
            padding_share=1 - self._tokens / self._positions,
            loss=float(trainer.callback_metrics["train/loss"]),
            estimated_gb=estimate(network, plan).total / 1e9,
        )
        self.found |= {name: float(value) for name, value in trainer.callback_metrics.items() if "rollout" in name}
        if torch.cuda.is_available():
            self.found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
            peak = next((peak for word, peak in PEAK_FLOPS.items() if word in torch.cuda.get_device_name()), None)
            self.found["flops_utilization"] = peak and flops / peak
        raise Measured


def measure(
    folder: Path,
    size: str,
    *,
    config: str,
    packing: bool = True,
    is_8bit: bool = False,
    is_compiled: bool = False,
    overlay: str | None = None,
) -> dict[str, Any]:
    """Tokens a second, share of the device's arithmetic, and peak memory beside the estimate of `check`."""
    checkpoint = write_checkpoint(folder, MODELS[config.partition("_")[0]], size)
    make_random()
    StepMeter.steps = STEPS[size]
    words = ["fit", "--config", str(CONFIGS / f"{config}.yaml")]
    if overlay:
        words += ["--config", str(CONFIGS / "overlays" / f"{overlay}.yaml")]
    options = {
        "runs": str(folder / "runs"),
        "model.init_args.checkpoint": str(checkpoint),
        "model.init_args.compile": is_compiled,
        "data.init_args.corpora": json.dumps([_corpus(folder, size, overlay)]),
        "data.init_args.max_length": ROW_LENGTH[size],
        "data.init_args.cache": str(folder / "cache"),
        "data.init_args.validation_fraction": 0.0,
        "data.init_args.max_bad_fraction": 1.0,  # some answers are too long
        "trainer.max_epochs": -1,
        "trainer.max_steps": sum(STEPS[size]) + 1,
        "trainer.limit_val_batches": 0,
        "trainer.num_sanity_val_steps": 0,
        "trainer.enable_progress_bar": False,
        "trainer.callbacks": json.dumps([{"class_path": "training.StepMeter"}]),
        "samples.count": 0,
    }
    if overlay != "grpo":  # which packs by an option of its own
        options["data.init_args.packing"] = packing
    if not overlay:
        options |= {"model.init_args.tuning.init_args.dropout": 0.0}
    if is_8bit:
        optimizer = {"class_path": "bitsandbytes.optim.AdamW8bit", "init_args": {"lr": 2e-5}}
        options |= {"model.init_args.optimizer": json.dumps(optimizer), "trainer.precision": "bf16-true"}
    if size == "tiny":
        options |= {"trainer.accelerator": "cpu", "trainer.precision": "32-true"}
        if overlay == "grpo":
            options |= {"data.init_args.max_new_tokens": 8, "data.init_args.micro_batch_size": 2}
    try:
        main([*words, *(f"--{name}={value}" for name, value in options.items())])
    except Measured:
        return dict(StepMeter.found)
    raise RuntimeError("the run ended before enough steps were seen")


def _corpus(folder: Path, size: str, overlay: str | None) -> dict[str, Any]:
    if overlay == "dpo":
        return {"class_path": "TrlPairs", "init_args": {"path": str(write_pairs(folder / "pairs.jsonl", size))}}
    path = write_conversations(folder / "conversations.jsonl", size)
    return {"class_path": "JsonlChat", "init_args": {"path": str(path)}}
