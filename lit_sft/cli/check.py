"""The verb check: the configuration of a `fit`, its memory on paper, and one step of everything for real."""

from __future__ import annotations

import logging
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser

from lit_sft.callbacks.preflight import Preflight
from lit_sft.checkpoint.opening import open_checkpoint
from lit_sft.cli._base import FitReader
from lit_sft.cli.fit import CLI, run_cli
from lit_sft.configuration import build
from lit_sft.data._asking import AskingData
from lit_sft.display import visible
from lit_sft.errors import ConfigError, UserError
from lit_sft.preflight.memory import estimate
from lit_sft.preflight.network import measure_network
from lit_sft.preflight.plan import GB, device_memory, is_on_gpu, member, num_devices, plan_of, verdict
from lit_sft.runs.folder import LAST_CHECKPOINT, PREDICTIONS
from lit_sft.stages._predicting import Predicting
from lit_sft.tuning._base import Tuning

# A launched process would repeat the command that is running: `check`, not `fit`.
ONE_DEVICE = {"trainer.devices": 1, "trainer.num_nodes": 1, "trainer.strategy": "auto"}

ONE_STEP = {
    "name": "check",
    "trainer.max_epochs": -1,
    "trainer.limit_val_batches": 1,
    "trainer.val_check_interval": 1,
    "trainer.check_val_every_n_epoch": "null",
    "trainer.num_sanity_val_steps": 0,
    "trainer.fast_dev_run": "false",
    "trainer.enable_progress_bar": "false",
    "trainer.enable_checkpointing": "true",
    **ONE_DEVICE,
    "trainer.log_every_n_steps": 1,
    "samples.count": 0,
}

OWN_OPTIONS: dict[str, tuple[Any, Any, str]] = {
    "estimate_only": (bool, False, "Stop after the estimate: config.json is all that is read."),
    "device_memory": (float | None, None, "GB of the device to check for; this one's if not given."),
}


class EstimateCLI(FitReader):
    """Takes what `fit` takes, and counts; neither weights nor data are read.

    `estimated`: bytes of a step; `accumulation`: micro-batches of the smallest one; `is_all_asked`: whether the
    estimate is all that is wanted, or possible.
    """

    estimated: float
    accumulation: int
    is_all_asked: bool

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options of the check, beside those that a configuration for `fit` holds."""
        super().add_arguments_to_parser(parser)
        for name, (kind, default, meaning) in OWN_OPTIONS.items():
            parser.add_argument(f"--{name}", type=kind, default=default, help=meaning)

    def instantiate_classes(self) -> None:
        """Open the checkpoint, estimate and say so.

        Raises:
            ConfigError: If it does not fit, with what to change.
        """
        model, trainer = self.config.model.init_args, self.config.trainer
        family = open_checkpoint(model.checkpoint, model.family, model.prompt_format).family
        devices = num_devices(trainer.devices, trainer.accelerator) * trainer.num_nodes
        given = self.config.device_memory
        is_gpu = given is not None or is_on_gpu(trainer.accelerator)
        tuning = build("tuning", Tuning, model.tuning.as_dict())
        plan, size = plan_of(self.config, tuning, family, devices, is_gpu=is_gpu), measure_network(family)
        if given is not None and given <= 0:
            raise ConfigError(f"--device_memory is {given}; give the GB of a device, such as 80")
        memory = given * GB if given else device_memory(trainer.accelerator)
        fits, said = verdict(size, plan, family.lora_targets, memory)
        if not fits:
            raise ConfigError(f"memory: {said}")
        _report("memory", f"OK  {said}")
        self.estimated = estimate(size, plan).total
        self.accumulation = member(self.config.model.class_path, "lit_sft.stages._base.Stage").min_accumulation
        self.is_all_asked = self.config.estimate_only
        if devices > 1 and not self.config.estimate_only:
            alone = replace(plan, num_devices=1, sharding="none")
            self.is_all_asked = not verdict(size, alone, family.lora_targets, device_memory(trainer.accelerator))[0]
            skipped = "skipped: the weights fit on several devices only"
            _report("steps", skipped if self.is_all_asked else "on one device")


class Clock(Callback):
    """When the parts of a fit were done, and the loss of the step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.loss = float("nan")
        self.preflight: Preflight | None = None
        self.has_prompts = False
        self._since = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Data and weights are there."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        self.has_prompts = (
            isinstance(pl_module, Predicting)
            and isinstance(data, AskingData)
            and bool(data.prompts or data.held_out_prompts(1))
        )
        self.preflight = next(c for c in trainer.callbacks if isinstance(c, Preflight))  # type: ignore[attr-defined]
        self._lap("load")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The step is done."""
        self._lap("train")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The validation is done; callbacks that save come last."""
        self._lap("validate")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checkpoint and export are written."""
        self._lap("save" if "train" in self.seconds else "train")
        self.loss = float(trainer.callback_metrics["train/loss"])

    def _lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name], self._since = now - self._since, now


def main(arguments: Sequence[str]) -> None:
    """Check a configuration: `main(["check", "--config", "configs/quickstart.yaml"])`.

    Raises:
        UserError: At the first thing that fails, with the remedy.
    """
    naming = {
        "prog": "python -m lit_sft check",
        "description": "Say whether a fit will work, and leave nothing behind.",
    }
    checked = run_cli(EstimateCLI, arguments, run=False, parser_kwargs=naming)
    if checked and not checked.is_all_asked:
        with tempfile.TemporaryDirectory(prefix="lit_sft-check-") as folder:
            logging.disable(logging.INFO)
            try:
                _run_steps(_without_own(arguments[1:]), Path(folder), checked)
            finally:
                logging.disable(logging.NOTSET)


def _run_steps(options: list[str], runs: Path, checked: EstimateCLI) -> None:
    """One step of each kind, through the verbs that a run uses."""
    clock, again = Clock(), Clock()
    one_step = {**ONE_STEP, "runs": runs, "trainer.accumulate_grad_batches": checked.accumulation}
    _fit(clock, [*options, *_options({**one_step, "trainer.max_steps": 1})], "train")
    (run,) = runs.iterdir()
    _report("data", f"OK  read, and weights loaded in {clock.seconds['load']:.1f} s")
    assert clock.preflight is not None
    if clock.preflight.fault:
        raise ConfigError(clock.preflight.fault)
    _report("first batch", "OK")
    _report("train", f"OK  loss {clock.loss:.3f}, {clock.seconds['train']:.1f} s, {_peak(checked.estimated)}")
    if "validate" in clock.seconds:
        _report("validate", f"OK  {clock.seconds['validate']:.1f} s")
    else:
        _report("validate", "skipped: nothing is held out")
    size = (run / LAST_CHECKPOINT).stat().st_size
    _report("save", f"OK  {clock.seconds.get('save', 0):.1f} s, a checkpoint has {size / GB:.3g} GB")
    _fit(again, [*options, *_options({**one_step, "trainer.max_steps": 2}), "--resume", str(run)], "resume")
    _report("resume", f"OK  loss {again.loss:.3f}, {sum(again.seconds.values()):.1f} s with loading")
    limits = {
        **ONE_DEVICE,
        "runs": runs,
        "run": run,
        "predictions.path": run / PREDICTIONS,
        "trainer.limit_predict_batches": 1,
        # The run's configuration counts validations over epochs, which Lightning takes with whole batches only.
        "trainer.val_check_interval": 1,
        "trainer.fast_dev_run": "false",
        "trainer.enable_progress_bar": "false",
    }
    if not clock.has_prompts:
        _report("predict", "skipped: there is nothing to answer")
        return
    since = time.monotonic()
    _named("predict", lambda: run_cli(CLI, ["predict", *options, *_options(limits)]))
    _report("predict", f"OK  {time.monotonic() - since:.1f} s with loading")


def _fit(clock: Clock, options: list[str], name: str) -> None:
    class TimedCLI(CLI):
        """A fit with a clock, before the callbacks that save."""

        def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
            return super()._instantiate_trainer(config, [clock, *callbacks])

    _named(name, lambda: run_cli(TimedCLI, ["fit", *options]))


def _named(name: str, action: Callable[[], object]) -> None:
    """Say which part failed."""
    try:
        action()
    except UserError as error:
        raise type(error)(f"{name} failed: {error}") from error
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"{name} failed: the device has too little memory. Lower data.init_args.micro_batch_size or max_length, "
            "set gradient_checkpointing: true, or share the weights out with trainer.strategy: fsdp2"
        ) from error


def _without_own(words: Sequence[str]) -> list[str]:
    """Only what `fit` takes, too."""
    kept: list[str] = []
    is_value = False
    for word in words:
        name, equals, _ = word.removeprefix("--").partition("=")
        if is_value:
            is_value = False
        elif word.startswith("--") and name in OWN_OPTIONS:
            is_value = not equals
        else:
            kept.append(word)
    return kept


def _options(values: dict[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


def _peak(estimated: float) -> str:
    expected = f"{estimated / GB:.3g} GB estimated"
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / GB:.3g} GB at the peak, {expected}"
    # On Linux in units of 1024 bytes, on macOS in bytes; with the libraries, about half a GB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"{peak / GB:.3g} GB at the peak of the whole process, {expected} for the step"


def _report(what: str, said: str) -> None:
    print(f"{what:<13}{visible(said)}", flush=True)  # noqa: T201
