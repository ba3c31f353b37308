"""The verb compare: the model of a run before and after tuning, on the prompts that `predict` answers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from lit_sft.cli import CLI, run_cli
from lit_sft.conversation import Batch, Prompt
from lit_sft.corpora.safety_prompts import SafetyPrompts
from lit_sft.data.datamodule import SFTData
from lit_sft.errors import ConfigError
from lit_sft.generation.strategies import Strategy
from lit_sft.report.comparison import Comparison, Row, write_data, write_text
from lit_sft.report.examine import Examined, examine
from lit_sft.report.markdown import markdown
from lit_sft.report.page import page
from lit_sft.runs import LAST_CHECKPOINT, newest_run
from lit_sft.stages.sft import SFT

log = logging.getLogger(__name__)


class CompareCLI(CLI):
    """Takes what `fit` takes, loads the model once, and asks it before and after the run's weights are put in."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options of the comparison, beside those that a configuration for `fit` holds."""
        super().add_arguments_to_parser(parser)
        parser.add_method_arguments(Trainer, "fit", skip=set(self.subcommands()["fit"]))
        parser.add_argument("--count", type=int, default=50, help="Prompts of each category at most.")
        parser.add_argument("--output", type=str | None, default=None, help="Folder; RUN/comparison if not given.")
        parser.add_argument(
            "--before",
            type=str | None,
            default=None,
            help="Run folder or checkpoint of the same tuning to compare with; the base model if not given.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Without the verb, for this parser has only one."""
        super().parse_arguments(parser, args[1:])

    def before_instantiate_classes(self) -> None:
        """Find the checkpoints before anything heavy is built.

        Raises:
            ConfigError: If there is none, or an option asks for what cannot be.
        """
        super().before_instantiate_classes()
        config = self.config
        if config.count < 1:
            raise ConfigError(f"--count is {config.count}; it must be at least 1")
        name = config.name or Path(str((config.config or ["run"])[0])).stem
        self.run = Path(config.run or newest_run(Path(config.runs), name))
        self.after = _checkpoint(config.ckpt_path or self.run)
        self.before = _checkpoint(config.before) if config.before else None

    def after_instantiate_classes(self) -> None:
        """Compare, and write the report.

        Raises:
            ConfigError: For a stage that does not answer, several devices, or no prompts.
        """
        if not isinstance(self.model, SFT):
            raise ConfigError(f"compare needs a model that answers, such as SFT, not {type(self.model).__name__}")
        if self.trainer.world_size > 1:
            raise ConfigError("compare runs on one device: set trainer.devices to 1")
        data: SFTData = self.datamodule
        data.setup("predict")
        prompts = _first_of_each(data.asked, self.config.count)
        strategies = self.model.strategies
        before, after = self._examine(prompts, strategies)
        comparison = Comparison(
            title=f"{self.model.checkpoint.family.name} before and after tuning",
            about=self._about(prompts, strategies),
            rows=rows(prompts, before, after, _safety_files(data)),
            forgetting={name: (old, after.perplexities[name]) for name, old in before.perplexities.items()},
            seed=int(self.config.seed_everything),
        )
        folder = Path(self.config.output or self.run / "comparison")
        write_report(comparison, folder)
        print(f"report: {folder / 'report.html'}")  # noqa: T201

    def _examine(self, prompts: list[Prompt], strategies: dict[str, Strategy]) -> tuple[Examined, Examined]:
        """One loaded model: as the base or `--before` left it, then with the weights of the run."""
        stage, data = self.model, self.datamodule
        stage.trainer = self.trainer
        stage.configure_model()
        stage.to(self.trainer.strategy.root_device)
        options = {"batch_size": data.batching.num_rows}
        with self.trainer.precision_plugin.forward_context():
            if self.before:
                self._put_in(self.before)
                before = examine(stage, prompts, strategies, _probes(data), name="before", **options)
            else:
                with stage.tuning.base_of(stage.model):
                    before = examine(stage, prompts, strategies, _probes(data), name="before", **options)
            self._put_in(self.after)
            return before, examine(stage, prompts, strategies, _probes(data), name="after", **options)

    def _put_in(self, checkpoint: Path) -> None:
        stored = self.trainer.strategy.checkpoint_io.load_checkpoint(checkpoint, weights_only=True)
        self.model.on_load_checkpoint(stored)  # refuses one of another model or tuning
        self.model.load_state_dict(stored["state_dict"], strict=False)

    def _about(self, prompts: list[Prompt], strategies: Mapping[str, Strategy]) -> dict[str, str]:
        categories = Counter(prompt.category for prompt in prompts)
        tuning = type(self.model.tuning).__name__
        return {
            "Before": self.config.before or f"{self.model.checkpoint.path.name}, the base model",
            "After": f"{self.run.name}, tuned with {tuning}",
            "Prompts": f"{len(prompts)} in {len(categories)} " + ("categories" if len(categories) > 1 else "category"),
            "Strategies": ", ".join(strategies),
        }


def main(arguments: Sequence[str]) -> None:
    """Compare a run with its base: `main(["compare", "--run", "runs/NAME"])`.

    Raises:
        UserError: For everything that the user can put right.
    """
    naming = {"prog": "python -m lit_sft compare", "description": "Compare a model before and after tuning."}
    run_cli(CompareCLI, arguments, run=False, parser_kwargs=naming)


def rows(prompts: Sequence[Prompt], before: Examined, after: Examined, safety_files: Sequence[str]) -> list[Row]:
    """Answers side by side; a prompt is one of safety if its file is of Safety-Prompts."""
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


def write_report(comparison: Comparison, folder: Path) -> None:
    """Write report.html, report.md, metrics.json and answers.jsonl.

    Raises:
        ConfigError: If the folder cannot be written to.
    """
    measured = comparison.measure()
    write_data(comparison, measured, folder)
    write_text(folder / "report.html", page(comparison, measured))
    write_text(folder / "report.md", markdown(comparison, measured))


def _checkpoint(place: str | Path) -> Path:
    path = Path(place)
    found = path / LAST_CHECKPOINT if path.is_dir() else path
    if not found.is_file():
        raise ConfigError(f"{place} is no checkpoint, and no run with a {LAST_CHECKPOINT}")
    return found


def _first_of_each(prompts: Iterable[Prompt], count: int) -> list[Prompt]:
    """The first of each category, category after category."""
    kept: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        kept.setdefault(prompt.category, []).append(prompt)
    return [prompt for name in sorted(kept) for prompt in kept[name][:count]]


def _safety_files(data: SFTData) -> list[str]:
    corpora = [*data.corpora, *data.test_corpora]
    return [f"{file}:" for corpus in corpora if isinstance(corpus, SafetyPrompts) for file in corpus.files]


def _probes(data: SFTData) -> list[Iterable[Batch]]:
    """What shows forgetting: the corpora for it, or the validation split by corpus."""
    if not data.forgetting:
        return [data.val_dataloader()]
    others = SFTData(
        data.text,
        corpora=data.forgetting,
        test_corpora=data.forgetting,
        max_length=data.batching.row_length,
        micro_batch_size=data.batching.num_rows,
        cache=str(data.cache),
    )
    return [others.test_dataloader()]
