"""The verbs that train and measure: fit, validate, test, predict, through LightningCLI.

Model and data are chosen by `class_path`; the checkpoint path stands once, in the model, and the data module receives
the opened checkpoint from it. `--run DIR` stands for the configuration and last checkpoint of a run.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from transformers.utils.logging import disable_progress_bar

from lit_sft.callbacks.checkpoints import keep_last_and_best
from lit_sft.callbacks.export import Export
from lit_sft.callbacks.prediction_writer import PredictionWriter
from lit_sft.callbacks.progress import RunProgress
from lit_sft.callbacks.run_record import RunRecord
from lit_sft.callbacks.samples import Samples
from lit_sft.callbacks.summary import Summary
from lit_sft.callbacks.throughput import Throughput
from lit_sft.cli_parser import ShortErrorParser, user_error_in
from lit_sft.corpora._base import Corpus
from lit_sft.data.datamodule import SFTData
from lit_sft.errors import ConfigError
from lit_sft.generation.strategies import Strategy
from lit_sft.plugins import members
from lit_sft.runs import CONFIG, LAST_CHECKPOINT, new_run, newest_run
from lit_sft.stages._base import Stage
from lit_sft.stages.schedules import Schedule
from lit_sft.tuning._base import Tuning

HARMLESS_WARNINGS = (
    ".*does not have many workers.*",
    ".*LeafSpec.*",  # lightning 2.6 on torch 2.13
    "LightningCLI's args parameter",
    "`is_gradient_checkpointing` is deprecated",  # peft 0.21 on transformers 5.23
    "Total length of `list` across ranks is zero",  # nothing is held out
    "Be aware that when using `ckpt_path`",  # measuring a run needs no ModelCheckpoint
    "The dirpath has changed from",  # a run taken up goes on in a folder of its own
    r"`ModelCheckpoint\(monitor='val/loss'\)` could not find",  # the run ended before its first validation
)

STARTED = "LIT_SFT_STARTED"
"""Environment variable that carries the start of the run to processes that Lightning spawns."""

# Kinds of plug-in that a configuration names by class.
KINDS = {
    Stage: "lit_sft.stages",
    Tuning: "lit_sft.tuning",
    Corpus: "lit_sft.corpora",
    Strategy: "lit_sft.generation",
    Schedule: "lit_sft.stages",
    SFTData: "lit_sft.data",
}


EPILOG = """\
What the classes that a configuration names take: --model.help=SFT, --data.help=SFTData, --model.tuning.help=LoRA,
--model.generation.help=TopP, --model.schedule.help=Cosine, --model.optimizer.help=torch.optim.AdamW"""


class Parser(ShortErrorParser, LightningArgumentParser):
    """LightningCLI's parser with short errors."""

    plugins = tuple(KINDS.items())

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"prog": "python -m lit_sft", "epilog": EPILOG, **kwargs})


class CLI(LightningCLI):
    """LightningCLI with a run folder, its own callbacks and short errors."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options beside model, data and trainer."""
        parser.add_argument(
            "--name", type=str | None, default=None, help="Name of the run; the configuration's if not given."
        )
        parser.add_argument("--runs", type=str, default="runs", help="Folder that receives a folder for each run.")
        parser.add_argument(
            "--run",
            type=str | None,
            default=None,
            help="Run folder whose configuration and last checkpoint are used (validate, test, predict).",
        )
        parser.add_argument(
            "--base", type=bool, default=False, help="With --run: leave out what was trained and use the base model."
        )
        parser.add_lightning_class_args(Samples, "samples")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.link_arguments(
            "model", "data.init_args.text", compute_fn=lambda model: model.checkpoint, apply_on="instantiate"
        )
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; the mistake behind a failure comes out as it was raised."""
        try:
            super().instantiate_classes()
        except Exception as error:
            raise user_error_in(error) or error from None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that writes into the run folder."""
        folder = self._run_folder()
        given = self._get(self.config_init, "trainer")
        if given.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(folder, name="", version="", sub_dir="tensorboard")
        if self.subcommand != "fit":
            # Only a fit is a run; measuring one must not write curves into it.
            kwargs["logger"] = False
        return super().instantiate_trainer(default_root_dir=str(folder), **kwargs)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        if config.get("enable_progress_bar") in (None, True):
            callbacks = [*callbacks, RunProgress()]
        if self.subcommand == "fit":
            samples = next(callback for callback in callbacks if isinstance(callback, Samples))
            callbacks += [Throughput(), Summary(samples), Export()]
            if config.get("enable_checkpointing") in (None, True):
                callbacks += keep_last_and_best(has_validation=getattr(self.datamodule, "validation_fraction", 0) > 0)
        trainer: Trainer = super()._instantiate_trainer(config, callbacks)
        return trainer

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        if kwargs.get("weights_only") is None:
            # A checkpoint is data: loading one must never run code.
            kwargs["weights_only"] = True
        return kwargs

    def _run_folder(self) -> Path:
        run = self._get(self.config, "run")
        if run and self.subcommand != "fit":
            return Path(run)
        runs = Path(self._get(self.config, "runs"))
        if self.subcommand != "fit":
            return runs
        configs = self._get(self.config, "config") or []
        name = self._get(self.config, "name") or (
            Path(str(configs[0])).stem if configs else type(self.model).__name__.lower()
        )
        started = os.environ.setdefault(STARTED, datetime.now().isoformat(timespec="seconds"))
        return new_run(runs, name, datetime.fromisoformat(started))


def main(arguments: Sequence[str]) -> None:
    """Run a verb: `main(["fit", "--config", "configs/quickstart.yaml"])`."""
    _quieten()
    for base, package in KINDS.items():
        members(package, base)  # makes their short class names known
    CLI(
        Stage,
        SFTData,
        save_config_callback=RunRecord,
        seed_everything_default=42,
        trainer_defaults={"enable_model_summary": False},
        parser_class=Parser,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        # Hyper-parameters stored in a checkpoint must never win over the configuration.
        load_from_checkpoint_support=False,
        args=expand_run(list(arguments)),
    )


def expand_run(arguments: list[str]) -> list[str]:
    """Put the configuration and checkpoint that `--run DIR` stands for in front of the other options.

    Without a configuration and without `--run`, validate, test and predict take the newest run and say so.

    Raises:
        ConfigError: If there is no such run.
    """
    verb, options = arguments[0], arguments[1:]
    if (
        verb == "fit"
        or {"-h", "--help", "--print_config"} & set(options)
        or any(".help" in option for option in options)
    ):
        return arguments
    run = _value_of("--run", options)
    if run is None:
        if _value_of("--config", options) or _value_of("-c", options):
            return arguments
        run = str(newest_run(Path(_value_of("--runs", options) or "runs")))
        logging.getLogger(__name__).warning("taking the newest run, %s", run)
        options = ["--run", run, *options]
    config, checkpoint = Path(run) / CONFIG, Path(run) / LAST_CHECKPOINT
    if not config.is_file():
        raise ConfigError(f"{run} is no run folder: it holds no {CONFIG}")
    expanded = [verb, "--config", str(config)]
    if (_value_of("--base", options) or "false").lower() != "true" and _value_of("--ckpt_path", options) is None:
        if not checkpoint.is_file():
            raise ConfigError(
                f"{run} holds no {LAST_CHECKPOINT}: it was not trained. Use --base true for the base model"
            )
        expanded += ["--ckpt_path", str(checkpoint)]
    return [*expanded, *options]


def _value_of(option: str, options: list[str]) -> str | None:
    for index, word in enumerate(options):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option and index + 1 < len(options):
            return options[index + 1]
    return None


def _quieten() -> None:
    """Our own messages, none of the libraries' chatter about things that are as they should be."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("lit_sft").setLevel(logging.INFO)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    disable_progress_bar()
    for message in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
