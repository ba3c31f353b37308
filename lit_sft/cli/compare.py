"""The verb compare: a model before and after tuning, or two models, on the prompts that `predict` answers."""

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lit_sft.checkpoint.files import is_exported
from lit_sft.cli._base import FitReader
from lit_sft.cli.fit import run_cli
from lit_sft.configuration import KindParser, stage_and_data
from lit_sft.conversation import Prompt
from lit_sft.data._asking import AskingData
from lit_sft.display import visible
from lit_sft.errors import ConfigError
from lit_sft.report.comparison import Comparison, Measured, Row, refuse_foreign, write_data, write_text
from lit_sft.report.evaluation import Evaluation, evaluate
from lit_sft.report.headlines import headlines
from lit_sft.report.judging import judge
from lit_sft.report.markdown import markdown
from lit_sft.report.page import page
from lit_sft.report.tracking import send_report
from lit_sft.report.training import Training, read_training
from lit_sft.rewards.trained import trained_rewards
from lit_sft.runs.folder import LAST_CHECKPOINT, is_run, newest_run, read_config
from lit_sft.stages._answering import Answering
from lit_sft.stages._base import Stage
from lit_sft.stages.reward import Reward

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """One side of a comparison: a model, and the checkpoint with what was trained of it; without one the base.

    `run`: in which it was trained, if that is known.
    """

    name: str
    model: Namespace
    weights: Path | None = None
    run: Path | None = None

    def can_become(self, other: State) -> bool:
        """Whether one loaded model can be this and then the other; what was put in cannot be taken out again."""
        own, others = self.model.init_args, other.model.init_args
        is_same = all(own[key] == others[key] for key in ("checkpoint", "family", "prompt_format", "tuning"))
        return is_same and (other.weights is not None or self.weights is None)


class CompareCLI(FitReader):
    """Takes what `fit` takes, and asks a model before and after tuning, or two models one after the other."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options of the comparison, beside those that a configuration for `fit` holds."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--count", type=int, default=50, help="Prompts of each category at most.")
        parser.add_argument("--output", type=str | None, default=None, help="Folder; RUN/comparison if not given.")
        parser.add_argument(
            "--before",
            type=str | None,
            default=None,
            help="Run folder, checkpoint of the same tuning, or model folder; the base model if not given.",
        )
        parser.add_argument(
            "--after", type=str | None, default=None, help="The same, in the place of --run; needs --output."
        )
        parser.add_argument(
            "--reward",
            type=str | list[str] | None,
            default=None,
            help="Run of the stage Reward, or what it exported, that scores the answers; or a list of such.",
        )

    def before_instantiate_classes(self) -> None:
        """Find the checkpoints before anything heavy is built.

        Raises:
            ConfigError: If there is none, or an option asks for what cannot be.
        """
        super().before_instantiate_classes()
        config = self.config
        if config.count < 1:
            raise ConfigError(f"--count is {config.count}; it must be at least 1")
        if config.after and not config.output:
            raise ConfigError("--after names no run to write into: give a folder for the report with --output")
        if config.after:
            self.after = self._state(config.after)
            self.folder = Path(config.output)
        else:
            name = config.name or Path(str((config.config or ["run"])[0])).stem
            run = Path(config.run or newest_run(Path(config.runs), name))
            tuning = config.model.init_args.tuning.class_path.rpartition(".")[2]
            weights = _checkpoint(config.ckpt_path or run)
            self.after = State(f"{run.name}, tuned with {tuning}", config.model, weights, run)
            self.folder = Path(config.output or run / "comparison")
        refuse_foreign(self.folder)
        base = Path(self.after.model.init_args.checkpoint).name
        self.before = (
            self._state(config.before) if config.before else State(f"{base}, the base model", self.after.model)
        )
        config.model = self.after.model
        # Refused, if so, before anything is asked; the weights are loaded when all has been.
        self.rewards = trained_rewards(config.reward, str(config.trainer.precision or "32-true"))

    def _state(self, place: str) -> State:
        """A run with the model of its own configuration, a model folder, or a checkpoint of the configured model."""
        folder = Path(place)
        if is_run(folder):
            parser = KindParser()
            parser.add_subclass_arguments(Stage, "model", fail_untyped=False)
            chosen = parser.parse_object({"model": read_config(folder)["model"]}).model
            return State(folder.name, chosen, _checkpoint(folder), folder)
        model = self.config.model.clone()
        if (folder / "config.json").is_file():
            model.init_args.checkpoint = place
            model.init_args.family = "auto"
            if is_exported(folder):
                model.init_args.tuning = Namespace({"class_path": "lit_sft.tuning.full.Full"})  # type: ignore[no-untyped-call]
            return State(folder.name, model)
        return State(place, model, _checkpoint(folder))

    def after_instantiate_classes(self) -> None:
        """Compare, and write the report.

        Raises:
            ConfigError: For a stage that does not answer, several devices, or no prompts.
        """
        _refuse_silent(self.model, self.datamodule)
        if self.trainer.world_size > 1:
            raise ConfigError("compare runs on one device: set trainer.devices to 1")
        is_one = self.before.can_become(self.after)
        stage, data = (self.model, self.datamodule) if is_one else self._other(self.before)
        asked = self._prompts(data)
        before = self._examine(self.before, stage, data, asked, "before")
        if not is_one:
            stage.model = None  # two large models need not fit beside each other
            gc.collect()
        prompts = self._prompts(self.datamodule)
        after = self._examine(self.after, self.model, self.datamodule, prompts, "after")
        before, after = self._judged(prompts, before, after, stage)
        family = self.model.checkpoint.family.name
        comparison = Comparison(
            title=f"{family} before and after tuning" if is_one else f"{self.before.name} against {self.after.name}",
            about=self._about(prompts, is_same_text=[p.input_ids for p in asked] == [p.input_ids for p in prompts]),
            rows=rows(prompts, before, after, _safety_files(self.datamodule)),
            probed=(before.probed, after.probed),
            seed=int(self.config.seed_everything),
            judges=list(self.rewards),
            training=read_training(self.after.run) if self.after.run else Training(),
        )
        measured = write_report(comparison, self.folder)
        print(headlines(comparison, measured))  # noqa: T201
        print(f"report: {visible(str(self.folder / 'report.html'))}")  # noqa: T201
        if self.after.run:
            send_report(self.after.run, self.folder, measured)

    def _other(self, state: State) -> tuple[Answering, AskingData]:
        """Another model than the configured one, which reads the same data in its own way."""
        config = {"seed_everything": self.config.seed_everything, "model": state.model, "data": self.config.data}
        stage, data = stage_and_data(
            {key: getattr(value, "as_dict", lambda v=value: v)() for key, value in config.items()}
        )
        return _refuse_silent(stage, data)

    def _prompts(self, data: AskingData) -> list[Prompt]:
        data.setup("predict")
        return _first_of_each(data.predict_prompts, self.config.count)

    def _examine(
        self, state: State, stage: Answering, data: AskingData, prompts: list[Prompt], name: str
    ) -> Evaluation:
        """The model with what was trained of it, or without."""
        stage.trainer = self.trainer
        stage.configure_model()
        stage.to(self.trainer.strategy.root_device)
        if state.weights:
            stored = self.trainer.strategy.checkpoint_io.load_checkpoint(state.weights, weights_only=True)
            stage.on_load_checkpoint(stored)  # refuses one of another model or tuning
            stage.load_state_dict(stored["state_dict"], strict=False)
        with (
            torch.no_grad(),
            self.trainer.precision_plugin.forward_context(),
            nullcontext() if state.weights else stage.tuning.base_of(stage.model),
        ):
            return evaluate(
                stage,
                prompts,
                self.model.strategies,
                [data.forgetting_dataloader()],
                name=name,
                batch_size=data.micro_batch_size,
            )

    def _judged(
        self, prompts: list[Prompt], before: Evaluation, after: Evaluation, stage: Stage
    ) -> tuple[Evaluation, Evaluation]:
        """The answers with what the reward models say of them, one after the other in the place of the policies."""
        if self.rewards:
            stage.model = self.model.model = None
            gc.collect()
        for name, reward in self.rewards.items():
            reward.to(self.trainer.strategy.root_device)
            with self.trainer.precision_plugin.forward_context():
                before, after = judge(prompts, before, after, reward, name)
            reward.unload()
            replies = [reply for by_strategy in after.replies.values() for reply in by_strategy]
            if num_missing := sum(name not in reply.rewards for reply in replies):
                log.warning(
                    "%s could not judge %d of %d answers: not finite, too long, or not to be written",
                    name, num_missing, len(replies),
                )  # fmt: skip
        return before, after

    def _about(self, prompts: list[Prompt], *, is_same_text: bool) -> dict[str, str]:
        categories = Counter(prompt.category for prompt in prompts)
        about = {
            "Before": self.before.name,
            "After": self.after.name,
            "Prompts": f"{len(prompts)} in {len(categories)} " + ("categories" if len(categories) > 1 else "category"),
            "Strategies": ", ".join(self.model.strategies),
        }
        if self.rewards:
            about["Judged by"] = ", ".join(self.rewards)
        if not is_same_text:
            about["Tokens"] = "not the same before and after: perplexity and token accuracy count different things"
        return about


def main(arguments: Sequence[str]) -> None:
    """Compare a run with its base: `main(["compare", "--run", "runs/NAME"])`.

    Raises:
        UserError: For everything that the user can put right.
    """
    naming = {"prog": "python -m lit_sft compare", "description": "Compare a model before and after tuning."}
    run_cli(CompareCLI, arguments, run=False, parser_kwargs=naming)


def rows(prompts: Sequence[Prompt], before: Evaluation, after: Evaluation, safety_files: Sequence[str]) -> list[Row]:
    """Answers side by side; a prompt is one of safety if the corpus of its file is."""
    return [
        Row(
            source=prompt.source,
            category=prompt.category or "prompts",
            strategy=strategy,
            prompt=prompt.text,
            reference=prompt.reference,
            before=old,
            after=new,
            is_safety=prompt.source.startswith(tuple(safety_files)),
        )
        for strategy, replies in before.replies.items()
        for prompt, old, new in zip(prompts, replies, after.replies[strategy], strict=True)
    ]


def write_report(comparison: Comparison, folder: Path) -> list[Measured]:
    """Write report.html, report.md, metrics.json and answers.jsonl.

    Returns:
        What was measured.

    Raises:
        ConfigError: If the folder cannot be written to.
    """
    measured = comparison.measure()
    write_data(comparison, measured, folder)
    write_text(folder / "report.html", page(comparison, measured))
    write_text(folder / "report.md", markdown(comparison, measured))
    return measured


def _checkpoint(place: str | Path) -> Path:
    path = Path(place)
    found = path / LAST_CHECKPOINT if path.is_dir() else path
    if not found.is_file():
        raise ConfigError(f"{place} is not a checkpoint, nor a run with a {LAST_CHECKPOINT}, nor a model folder")
    return found


def _first_of_each(prompts: Iterable[Prompt], count: int) -> list[Prompt]:
    """The first of each category, category after category."""
    kept: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        kept.setdefault(prompt.category, []).append(prompt)
    return [prompt for name in sorted(kept) for prompt in kept[name][:count]]


def _safety_files(data: AskingData) -> list[str]:
    corpora = [*data.corpora, *data.test_corpora]
    return [f"{file}:" for corpus in corpora if corpus.is_about_safety for file in corpus.files]


def _refuse_silent(stage: Any, data: Any) -> tuple[Answering, AskingData]:
    if isinstance(stage, Reward):
        raise ConfigError(
            "compare asks a model, and a reward model does not answer: it judges the answers, --reward RUN"
        )
    if not isinstance(stage, Answering) or not isinstance(data, AskingData):
        found = f"{type(stage).__name__} and {type(data).__name__}"
        raise ConfigError(f"compare needs a model and data that ask and answer, such as SFT and SFTData, not {found}")
    return stage, data
