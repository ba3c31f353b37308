"""The parser of the verbs that take a configuration: short errors, and a help that shows what one needs."""

from __future__ import annotations

import argparse
import re
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from lit_sft.configuration import KindParser
from lit_sft.stages._base import Stage

EPILOG = """\
What the classes that a configuration names take: --model.help=SFT, --data.help=SFTData, --model.tuning.help=LoRA,
--model=SFT --model.generation.help=TopP, --model.schedule.help=Cosine, --model.optimizer.help=torch.optim.AdamW,
--data=SFTData --data.corpora.help=Belle. Every other option of Lightning's Trainer is taken, too: --print_config shows
all with their values."""

SHOWN = {
    *("accelerator", "devices", "num_nodes", "strategy", "precision", "max_epochs", "max_steps", "max_time"),
    *("accumulate_grad_batches", "gradient_clip_val", "val_check_interval", "check_val_every_n_epoch"),
    *("num_sanity_val_steps", "log_every_n_steps", "callbacks", "logger", "enable_progress_bar", "fast_dev_run"),
}
"""Options of the trainer that stand in the help; there are forty, most of them about devices of others."""

TRAINER_TITLE = "Customize every aspect of training via flags"

_SUBCLASSES = re.compile(r",\s+known\s+subclasses:[^()]*\)")


class Parser(KindParser, LightningArgumentParser):
    """LightningCLI's parser with short errors and a short help."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"prog": "python -m lit_sft", "epilog": EPILOG, **kwargs})

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """Without what is seldom wanted."""
        for action in self._actions:
            group, _, name = action.dest.partition(".")
            if (group == "trainer" and name not in SHOWN) or group == "weights_only":
                action.help = argparse.SUPPRESS
        # Python sorts stably: the others stay in their order.
        self._action_groups = sorted(self._action_groups, key=lambda group: group.title == TRAINER_TITLE)
        own, title, lightnings = super().format_help(formatter).rpartition(f"{TRAINER_TITLE}:")
        return own + title + _SUBCLASSES.sub(")", lightnings)


def hide(parser: LightningArgumentParser, *options: str) -> None:
    """Take options that have no meaning for a verb, but stand in configurations, out of its help."""
    for action in parser._actions:
        if action.dest in options:
            action.help = argparse.SUPPRESS


def checkpoint_of(model: Stage) -> Any:
    """What the data module needs of the model; named, for the help shows it."""
    return model.checkpoint
