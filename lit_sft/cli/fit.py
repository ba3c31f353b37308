"""The verbs that train and measure: fit, validate, test, predict, through LightningCLI.

Model and data are chosen by `class_path`; the checkpoint path stands once, in the model, and the data module receives
the opened checkpoint from it. `--run DIR` stands for the configuration and last checkpoint of a run.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from jsonargparse.typing import register_type
from lightning import Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from lit_sft.callbacks._loggers import Curves
from lit_sft.callbacks.checkpoint_file import CheckpointFile, read_checkpoint
from lit_sft.callbacks.checkpoints import Checkpoints
from lit_sft.callbacks.export import Export
from lit_sft.callbacks.guests import Guests
from lit_sft.callbacks.hyperparameters import HyperParameters
from lit_sft.callbacks.pair_samples import PairSamples
from lit_sft.callbacks.prediction_writer import PredictionWriter
from lit_sft.callbacks.preflight import Preflight
from lit_sft.callbacks.progress import RunProgress
from lit_sft.callbacks.run_record import RunRecord
from lit_sft.callbacks.samples import Samples
from lit_sft.callbacks.summary import Summary
from lit_sft.callbacks.throughput import Throughput
from lit_sft.cli._best_of import add_options, best_of
from lit_sft.cli.measured import tell_measured
from lit_sft.cli.mistakes import full_disks_told_once, mistake_behind
from lit_sft.cli.parser import Parser, checkpoint_of
from lit_sft.cli.quiet import quieten
from lit_sft.cli.run_option import expand_run
from lit_sft.configuration import BASE_CLASSES
from lit_sft.data._base import CorpusData
from lit_sft.distributed.processes import end_with_parent, launch_environment, process_rank
from lit_sft.errors import ConfigError, Stopped
from lit_sft.plugins import discover
from lit_sft.preflight.plan import refuse_mps
from lit_sft.runs.folder import (
    BASE_PREDICTIONS,
    CURVES,
    LAST_CHECKPOINT,
    PREDICTIONS,
    check_writable,
    command,
    is_run,
    new_run,
    newest_checkpoint,
    unfinished_run,
)
from lit_sft.runs.lock import locked
from lit_sft.stages._base import Stage

log = logging.getLogger(__name__)

# Options of Lightning's StochasticWeightAveraging and Timer, which config.yaml must hold.
register_type(torch.device)
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))

RUN_NAMES = ("WANDB_NAME", "SWANLAB_EXP_NAME")
"""Variables from which other loggers take the name of a run, where a configuration has none."""

RUN_FOLDER = "LIT_SFT_RUN_FOLDER"
"""Environment variable that carries the run folder to the processes that Lightning launches."""

AnyCLI = TypeVar("AnyCLI", bound="CLI")


class CLI(LightningCLI):
    """LightningCLI with a run folder, its own callbacks and short errors."""

    _resumed: Path | None = None
    """Checkpoint with which a run goes on in its own folder."""

    _made: Path | None = None
    """Run folder that this process made."""

    def __init__(self, stage: type[Any], data: type[Any], *, args: list[str], **options: Any) -> None:
        self._verb = args[0]
        super().__init__(stage, data, args=args, **options)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options beside model, data and trainer."""
        if self._verb not in {"fit", "check"} and isinstance(parser, Parser):
            parser.unread = ("trainer.logger",)  # its package may be where the run was trained, and not here
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
            "--base",
            type=bool,
            default=False,
            help="With --run: the checkpoint alone, without any adapter, one that training began from included; as "
            "`compare` has it.",
        )
        parser.add_argument(
            "--resume",
            type=str | None,
            default=None,
            help="Resume a run in its own folder (fit): the run folder, or `auto` for the newest unfinished run of "
            "this name, a new one if none of this name was begun yet; refused if all of them are finished.",
        )
        parser.add_lightning_class_args(Samples, "samples")
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        if self._verb == "predict":
            add_options(parser)
        parser.link_arguments("model", "data.init_args.text", compute_fn=checkpoint_of, apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the verb that was called: the parser of one takes a fifth of a second."""
        return {verb: skipped for verb, skipped in LightningCLI.subcommands().items() if verb == self._verb}

    def _parse_ckpt_path(self) -> None:
        """Lightning would read the checkpoint, let its hyper-parameters win, and fail on one that is damaged."""

    def before_instantiate_classes(self) -> None:
        """Refuse what cannot work before anything heavy is built.

        Raises:
            ConfigError: For a checkpoint that is not a file, or options of another verb.
        """
        # The link was followed when `true` did not yet stand for a number.
        self._get(self.config, "data").init_args.seed = int(self._get(self.config, "seed_everything"))
        checkpoint = self._get(self.config, "ckpt_path")
        if checkpoint and not Path(checkpoint).is_file():
            raise ConfigError(f"--ckpt_path {checkpoint} is not a file; give one such as runs/NAME/{LAST_CHECKPOINT}")
        if self.subcommand == "fit" and (self._get(self.config, "run") or self._get(self.config, "base")):
            raise ConfigError("--run and --base are for validate, test and predict. To resume a run: fit --resume RUN")
        resume = self._get(self.config, "resume")
        if resume and (checkpoint or self.subcommand != "fit"):
            raise ConfigError("--resume is for fit, and takes the checkpoint of the run; leave --ckpt_path out")
        if resume and self._get(self.config, "trainer.fast_dev_run"):
            raise ConfigError("trainer.fast_dev_run keeps nothing; leave it out to resume a run")
        tuning = self._get(self.config, "model").init_args.get("tuning")
        if self._get(self.config, "base") and tuning and tuning.get("init_args", {}).get("adapter"):
            tuning.init_args.adapter = None  # a fresh one changes nothing
        refuse_mps(self._get(self.config, "trainer.accelerator"))

    def after_instantiate_classes(self) -> None:
        """Let a reward model choose among the answers of `predict`, if one is to."""
        if self.subcommand == "predict" and (chosen := best_of(self.model, self.config["predict"])):
            self.model.best_of = chosen

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that writes into the run folder."""
        folder = self._run_folder()
        given = self._get(self.config_init, "trainer")
        if given.default_root_dir:
            log.warning("trainer.default_root_dir has no effect: a run has a folder of its own in --runs")
        # Only a fit is a run; measuring one must not write curves into it.
        kwargs["logger"] = self._loggers(given.logger, folder) if self.subcommand == "fit" else False
        return super().instantiate_trainer(default_root_dir=str(folder), **kwargs)

    def _loggers(self, given: Logger | list[Logger] | bool | None, folder: Path) -> list[Logger]:
        """Those of the configuration beside our own, unless it has a TensorBoardLogger of its own, or none at all."""
        if given is False:
            return []
        others = [] if given is None or given is True else given if isinstance(given, list) else [given]
        if any(isinstance(logger, TensorBoardLogger) for logger in others):
            return others
        for variable in RUN_NAMES:
            os.environ.setdefault(variable, folder.name)
        # Where the run goes on, what a later step left in the curves counts no more.
        step = _step_of(self._resumed) if self._resumed and process_rank() == 0 else None
        return [Curves(folder, purge_step=step), *others]

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        given = config.get("callbacks") or []
        if any(isinstance(callback, ProgressBar) for callback in (given if isinstance(given, list) else [given])):
            config["enable_progress_bar"] = True  # `false` says: without ours
        elif config.get("enable_progress_bar") in (None, True):
            callbacks = [*callbacks, RunProgress()]
        is_kept = not config.get("fast_dev_run")
        if self.subcommand == "fit":
            samples = next(callback for callback in callbacks if isinstance(callback, Samples))
            pairs = PairSamples(samples)
            kept = [Export(), Summary(samples, pairs)] if is_kept else []
            own = [pairs, Throughput(), HyperParameters(), *kept, Preflight(self.config.fit)]
            callbacks = [Guests(), *callbacks, *own]
        if self.subcommand != "fit" or config.get("enable_checkpointing") is False or not is_kept:
            callbacks = [callback for callback in callbacks if not isinstance(callback, Checkpoints)]
        for callback in callbacks:
            if isinstance(callback, PredictionWriter):
                callback.default_name = self._predictions_name()
        trainer: Trainer = super()._instantiate_trainer(config, callbacks)
        trainer.strategy.checkpoint_io = CheckpointFile(checked=self._resumed)
        return trainer

    def _predictions_name(self) -> str:
        """What the file of answers is called unless told: those of a base model are not those of another."""
        if self._get(self.config, "base"):
            return BASE_PREDICTIONS
        if self._get(self.config, "run"):
            return PREDICTIONS
        return f"predictions-{self.model.checkpoint.path.resolve().name}.jsonl"

    def _tell_measured(self) -> None:
        base = "-base" if self._get(self.config, "base") else ""
        tell_measured(self.trainer, self._get(self.config, "run"), f"{self.subcommand}{base}")

    after_validate = after_test = _tell_measured  # hooks of LightningCLI

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        if kwargs.get("weights_only") is None:
            # A checkpoint is data: loading one must never run code.
            kwargs["weights_only"] = True
        if subcommand in {"validate", "test"}:
            kwargs["verbose"] = False  # sixteen digits; after it comes our own table
        if self._resumed:
            kwargs["ckpt_path"] = str(self._resumed)
        run = self._get(self.config, "run")
        if run and not kwargs.get("ckpt_path") and not self._get(self.config, "base"):
            checkpoint = Path(run) / LAST_CHECKPOINT
            if not checkpoint.is_file():
                raise ConfigError(f"{run} holds no {LAST_CHECKPOINT}. Use --base true for the model before tuning")
            kwargs["ckpt_path"] = str(checkpoint)
        if subcommand != "fit" and kwargs.get("ckpt_path"):
            # As an argument, nobody could know it before the weights are loaded.
            self.trainer.ckpt_path = kwargs.pop("ckpt_path")
        return kwargs

    def _run_subcommand(self, subcommand: str) -> None:
        folder = Path(self.trainer.default_root_dir)
        is_writer = subcommand == "fit" and process_rank() == 0
        savers = [callback for callback in self.trainer.callbacks if isinstance(callback, Checkpoints)]  # type: ignore[attr-defined]
        try:
            with (
                locked(folder) if is_writer else nullcontext(),
                self._without_curves_if_refused(folder) if is_writer and self._resumed else nullcontext(),
                savers[0].signals.installed() if savers else nullcontext(),
            ):
                super()._run_subcommand(subcommand)
            if is_writer and self.trainer.fast_dev_run:  # type: ignore[attr-defined]
                log.info("fast_dev_run: done, %d optimizer steps; nothing is kept", self.trainer.global_step)
        except Stopped:
            if is_writer and (folder / LAST_CHECKPOINT).is_file():
                log.warning("%s is saved. Resume it: %s -m lit_sft fit --resume %s", folder, command("python"), folder)
            raise
        except SystemExit:
            if self.trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
        finally:
            if folder == self._made and not is_run(folder):
                # It failed before it began: nothing of it is worth keeping.
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _without_curves_if_refused(self, folder: Path) -> Iterator[None]:
        """Lightning opens a file of curves, which ends those before, ahead of reading the checkpoint."""
        known = set(folder.glob(CURVES))
        try:
            yield
        except BaseException:
            (record,) = [callback for callback in self.trainer.callbacks if isinstance(callback, RunRecord)]  # type: ignore[attr-defined]
            if not record.already_saved:
                for logger in self.trainer.loggers:
                    logger.finalize("aborted")
                for made in set(folder.glob(CURVES)) - known:
                    made.unlink()
            raise

    def _run_folder(self) -> Path:
        if self.subcommand != "fit":
            return Path(self._get(self.config, "run") or self._get(self.config, "runs"))
        config = self.config[self.subcommand]
        configs = config.get("config") or []
        stem = Path(str(configs[0])).stem if configs else type(self.model).__name__.lower()
        config["name"] = config["name"] or stem  # what config.yaml then says, so that repeating it keeps the name
        runs, resume = Path(config["runs"]), config["resume"]
        config["resume"] = None  # and that repeating it is another run
        launched = os.environ.get(RUN_FOLDER)
        folder = Path(launched) if launched else None
        if resume:
            folder = folder or (unfinished_run(runs, config["name"]) if resume == "auto" else Path(resume))
            # The first process looks whether it is whole, and tells the others once they are connected.
            self._resumed = newest_checkpoint(folder, is_checked=process_rank() == 0) if folder else None
            if resume != "auto" and not self._resumed:
                raise ConfigError(f"{folder} holds no whole training checkpoint such as {LAST_CHECKPOINT} to resume")
        if launched:
            return Path(launched)
        if process_rank() and not self._resumed:  # launched by torchrun or SLURM; only the first process writes
            return runs
        if not folder or not self._resumed:
            folder = self._made = new_run(runs, config["name"])
        check_writable(folder)
        if self._resumed and process_rank() == 0:
            log.info("resuming %s from step %d", folder, _step_of(self._resumed))
        os.environ[RUN_FOLDER] = str(folder)
        return folder


def main(arguments: Sequence[str]) -> None:
    """Run a verb: `main(["fit", "--config", "configs/quickstart.yaml"])`.

    Raises:
        UserError: For everything that the user can put right.
    """
    run_cli(CLI, arguments)


# What every verb gives LightningCLI.
SETTINGS: dict[str, Any] = {
    "save_config_callback": RunRecord,
    "seed_everything_default": 42,
    # The data module shares its examples out by itself: exactly once, and resumable.
    # What validation gathers of sharded weights serves training too, so it must not be an inference tensor.
    "trainer_defaults": {
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "inference_mode": False,
    },
    "parser_class": Parser,
    "subclass_mode_model": True,
    "subclass_mode_data": True,
    "auto_configure_optimizers": False,
    # Hyper-parameters stored in a checkpoint must never win over the configuration.
    "load_from_checkpoint_support": False,
}


def run_cli(cli: type[AnyCLI], arguments: Sequence[str], **options: Any) -> AnyCLI | None:
    """Read a configuration and do what it says.

    Args:
        cli: Whether that is `CLI`, or less.
        arguments: The verb and its options.
        options: What LightningCLI takes beside.

    Returns:
        What did it; None in a process that another has launched and that was told to stop.

    Raises:
        UserError: For everything that the user can put right.
    """
    quieten()
    for bases in BASE_CLASSES.values():
        discover(*bases)  # makes their short class names known
    is_launcher = RUN_FOLDER not in os.environ
    if not is_launcher:
        end_with_parent()
    try:
        with launch_environment(), full_disks_told_once():
            return cli(Stage, CorpusData, args=expand_run(list(arguments)), **SETTINGS, **options)
    except Stopped:
        # Lightning kills the launching process when one that it launched reports failure.
        if is_launcher:
            raise
        return None
    except Exception as error:
        mistake = mistake_behind(error)
        if mistake is None:
            raise
        raise mistake from error
    finally:
        if is_launcher:
            os.environ.pop(RUN_FOLDER, None)


@atexit.register
def _end_process_group() -> None:
    """Lightning does it for NCCL only; threads of gloo that outlive the interpreter can abort the process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _step_of(checkpoint: Path) -> int:
    """The optimizer step at which it was written; little of the file is read."""
    return int(read_checkpoint(checkpoint)["global_step"])
