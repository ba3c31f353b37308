"""What the verbs share that read the configuration of a `fit` and do something else with it."""

from __future__ import annotations

from typing import Any

from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lit_sft.cli.fit import CLI
from lit_sft.cli.parser import hide


class FitReader(CLI):
    """Takes what `fit` takes, so that its configurations can be given as they are, and trains nothing."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options that a configuration for `fit` holds."""
        super().add_arguments_to_parser(parser)
        parser.add_method_arguments(Trainer, "fit", skip=set(LightningCLI.subcommands()["fit"]))
        hide(parser, "resume", "base")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Without the verb, for this parser has only one."""
        super().parse_arguments(parser, args[1:])
