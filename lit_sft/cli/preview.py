"""The verb preview: the configuration of a `fit`, of which only data and tokenizer are made."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lit_sft.checkpoint.opening import open_checkpoint
from lit_sft.cli._base import FitReader
from lit_sft.cli.fit import run_cli
from lit_sft.cli.parser import Parser
from lit_sft.data._base import CorpusData
from lit_sft.display import visible
from lit_sft.preflight.plan import num_devices
from lit_sft.preview.collect import collect
from lit_sft.preview.page import write_page
from lit_sft.preview.terminal import render


class PreviewCLI(FitReader):
    """Takes what `fit` takes, makes the data module, and shows what is in it."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options of the preview, beside those that a configuration for `fit` holds."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--html", type=str | None, default=None, help="File to write a page to that shows the same."
        )
        parser.add_argument("--count", type=int, default=3, help="Examples of each corpus to show.")
        parser.add_argument("--ids", type=bool, default=False, help="Show id, piece and label of every token.")

    def instantiate_classes(self) -> None:
        """Make the data module; of the model, only the checkpoint is opened."""
        model, data = self.config.model.init_args, self.config.data
        self.checkpoint = open_checkpoint(model.checkpoint, model.family, model.prompt_format)
        data.init_args.text = self.checkpoint
        parser = Parser()
        parser.add_subclass_arguments(CorpusData, "data")
        self.datamodule = parser.instantiate_classes(Namespace({"data": data})).data  # type: ignore[no-untyped-call]

    def after_instantiate_classes(self) -> None:
        """Show it."""
        trainer = self.config.trainer
        preview = collect(
            self.datamodule,
            self.checkpoint.path,
            count=self.config.count,
            num_devices=num_devices(trainer.devices, trainer.accelerator) * trainer.num_nodes,
            accumulation=trainer.accumulate_grad_batches,
        )
        is_colored = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        print(render(preview, is_colored=is_colored, with_ids=self.config.ids))  # noqa: T201
        if self.config.html:
            write_page(preview, Path(self.config.html))
            print(f"  page   {visible(str(self.config.html))}")  # noqa: T201


def main(arguments: Sequence[str]) -> None:
    """Show the data of a configuration: `main(["preview", "--config", "configs/quickstart.yaml"])`.

    Raises:
        UserError: For everything that the user can put right.
    """
    naming = {"prog": "python -m lit_sft preview", "description": "Show what the model will see of the data."}
    run_cli(PreviewCLI, arguments, run=False, parser_kwargs=naming)
