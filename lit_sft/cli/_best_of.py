"""Options of `predict` that let a reward model choose among several answers."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from lit_sft.errors import ConfigError
from lit_sft.generation.strategies import Sampling
from lit_sft.rewards.trained import Trained
from lit_sft.stages._answering import Answering
from lit_sft.stages._base import Stage
from lit_sft.stages._best_of import BestOf


def add_options(parser: LightningArgumentParser) -> None:
    """`--best_of` and `--reward`."""
    parser.add_argument(
        "--best_of",
        type=int | None,
        default=None,
        help="Sample so many answers to each prompt and write the one that --reward likes best.",
    )
    parser.add_argument("--reward", type=str | None, default=None, help="Run of the stage Reward, or what it exported.")


def best_of(stage: Stage, config: Any) -> BestOf | None:
    """What the options say; the weights of the reward model are loaded when there are answers.

    Args:
        stage: That answers.
        config: Of the verb.

    Raises:
        ConfigError: If the options do not go together, the answers could not differ, or there is no such reward model.
    """
    number, reward = config["best_of"], config["reward"]
    if number is None and not reward:
        return None
    if number is None:
        raise ConfigError("--reward chooses among several answers: give their number with --best_of")
    if not reward:
        raise ConfigError("--best_of needs a reward model that chooses: give a run of the stage Reward with --reward")
    if number < 2:
        raise ConfigError(f"--best_of is {number}; it must be at least 2")
    if not isinstance(stage, Answering):
        raise ConfigError(f"--best_of chooses among answers, and {type(stage).__name__} gives none: leave it out")
    for name, strategy in stage.strategies.items():
        if not isinstance(strategy, Sampling):
            raise ConfigError(
                f"--best_of: {name} gives the same answer every time. Set model.init_args.generation to one that "
                "samples, such as {class_path: TopP, init_args: {top_p: 0.9}}"
            )
    return BestOf(number, Trained(reward, precision=str(config["trainer"]["precision"] or "32-true")))
