"""What a configuration names by class: the kinds, and objects made of one just as `fit` makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lit_sft.cli_parser import ShortErrorParser, user_error_in
from lit_sft.plugins import members_of

if TYPE_CHECKING:
    from lit_sft.data.datamodule import SFTData
    from lit_sft.stages._base import Stage

# Key of a configuration -> what its classes derive from. By name: to build a strategy takes no Lightning.
KINDS = {
    "model": "lit_sft.stages._base.Stage",
    "data": "lit_sft.data.datamodule.SFTData",
    "tuning": "lit_sft.tuning._base.Tuning",
    "corpora": "lit_sft.corpora._base.Corpus",
    "test_corpora": "lit_sft.corpora._base.Corpus",
    "forgetting": "lit_sft.corpora._base.Corpus",
    "generation": "lit_sft.generation.strategies.Strategy",
    "schedule": "lit_sft.stages.schedules.Schedule",
}


class KindParser(ShortErrorParser):
    """A parser that knows the classes of each kind by their short names."""

    kinds = KINDS


def build(key: str, kind: Any, value: Any) -> Any:
    """An object from its class_path and init_args.

    Args:
        key: Where it would stand in a configuration.
        kind: Type of the parameter that takes it, such as `Strategy` or `Strategy | list[Strategy]`.
        value: What would stand there.

    Raises:
        ConfigError: With one line.
    """
    members_of(KINDS[key])  # makes short names known
    parser = KindParser()
    parser.add_argument(f"--{key}", type=kind)
    return _made(parser, {key: value})[key]


def stage_and_data(config: dict[str, Any]) -> tuple[Stage, SFTData]:
    """What `model` and `data` of a run's configuration stand for, no weight loaded.

    Raises:
        UserError: If the checkpoint or a corpus is not there.
    """
    from lit_sft.data.datamodule import SFTData
    from lit_sft.stages._base import Stage

    for base in KINDS.values():
        members_of(base)
    parser = KindParser()
    parser.add_argument("--seed_everything", type=int)
    # As LightningCLI does: the optimizers of other libraries declare no types.
    parser.add_subclass_arguments(Stage, "model", fail_untyped=False)
    parser.add_subclass_arguments(SFTData, "data", fail_untyped=False)
    parser.link_arguments("model", "data.init_args.text", lambda model: model.checkpoint, apply_on="instantiate")
    parser.link_arguments("seed_everything", "data.init_args.seed")
    opened = _made(parser, {key: config[key] for key in ("seed_everything", "model", "data")})
    return opened.model, opened.data


def _made(parser: KindParser, values: dict[str, Any]) -> Any:
    try:
        return parser.instantiate_classes(parser.parse_object(values))
    except ValueError as error:  # jsonargparse wraps what a constructor raises
        raise user_error_in(error) or error from None
