"""What a configuration names by class, and errors of one line: which key, what is wrong, which names are accepted.

Loads no torch.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import chdir
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from lit_sft.config_file import check_is_there, check_words, read_configuration, with_parts
from lit_sft.errors import ConfigError, UserError, accepted
from lit_sft.plugins import discover
from lit_sft.spellings import ours, renamed

if TYPE_CHECKING:
    from lit_sft.data._base import CorpusData
    from lit_sft.stages._base import Stage

CORPORA = ("lit_sft.corpora._base.Corpus", "lit_sft.preferences._base.JudgedAnswers")

# Key of a configuration -> what its classes derive from. By name: to build a strategy takes no Lightning.
BASE_CLASSES = {
    "model": ("lit_sft.stages._base.Stage",),
    "data": ("lit_sft.data._base.CorpusData",),
    "tuning": ("lit_sft.tuning._base.Tuning",),
    "corpora": CORPORA,
    "test_corpora": CORPORA,
    "forgetting": CORPORA,
    "generation": ("lit_sft.generation.strategies.Strategy",),
    "objective": ("lit_sft.objectives._base.Objective",),
    "rewards": ("lit_sft.rewards._base.RewardFunction",),
    "schedule": ("lit_sft.stages.schedules.Schedule",),
}

PATH_OPTIONS = {
    *("adapter", "after", "before", "cache", "checkpoint", "ckpt_path", "html", "output", "path", "prompts"),
    *("resume", "reward", "run", "runs", "text", "default_root_dir", "dirpath", "log_dir", "root_dir", "save_dir"),
}
"""Options that name files and folders, wherever they stand."""

CONFIG_OPTIONS = {"--config", "-c"}

LEVELS = {
    "model.init_args.": "lit_sft.stages.sft.SFT",
    "model.init_args.tuning.init_args.": "lit_sft.tuning.lora.LoRA",
    "model.init_args.optimizer.init_args.": "torch.optim.AdamW",
    "data.init_args.": "lit_sft.data.sft.SFTData",
}
"""Where the options stand that most configurations have, and whose they are."""

LIGHTNINGS = {"callbacks": "lightning.pytorch.callbacks", "logger": "lightning.pytorch.loggers"}
"""Key of a configuration -> module with the short names that Lightning knows for it."""

SHAPING_OPTIONS = {
    *("top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size", "num_beams"),
}
"""Options of strategies by which answers are drawn from another distribution than the network's."""

WHY_UNSHAPED = (
    "Answers that are trained on are drawn from the policy itself, with a temperature and nothing else: under another "
    "distribution every probability of theirs would be wrong. For predict and samples give it to a strategy of "
    "generation"
)

# What jsonargparse says, in the order in which the parts of one message are looked for.
CLASS_PROBLEM = re.compile(r"Problem with given class_path '([\w.]+)'")
MISSING_PACKAGE = re.compile(r"No module named '(?!lit_sft)(\w+)|pip install (?:-U )?['\"]?([A-Za-z][\w.-]*)")
KEY = re.compile(r'Parser key "([\w.\[\]]+)"')
UNKNOWN_OPTION = re.compile(r"Option '([\w.]+)' is not accepted")
CALLED_CLASS = re.compile(r"is not accepted\. Got value: Namespace\(class_path='([\w.]+)'")
NUMBER = re.compile(r"Expected a <class '(?:int|float)'>")
UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
NO_CALLABLE = re.compile(r"expects a function or a callable class: (.+?)\.? Got value")
ABSTRACT_CLASS = re.compile(r"Expected an instantiatable class, but [\w.]+ is abstract")
UNKNOWN_TOP_LEVEL = re.compile(r"does not accept option '([\w.]+)'|[Uu]nrecognized arguments: --([\w.]+)")
REQUIRED = re.compile(r"the following arguments are required: ([\w., ]+)")
EXPECTED = re.compile(r"Expected an? (?!<class 'NoneType'>|path but|dot import)(.+?)(?:\. Got value.*)?$", re.MULTILINE)
GIVEN = re.compile(r"Got value: (.*)|Given value: (.*?)(?:\. Got value.*)?$", re.MULTILINE)


class ShortErrorParser(ArgumentParser):
    """Raises `ConfigError` with one line instead of printing usage and nested alternatives."""

    base_classes: Mapping[str, tuple[str, ...]] = {}
    """Key of a configuration -> base classes of what it names by class, `lit_sft.tuning._base.Tuning`."""

    unread: tuple[str, ...] = ()
    """Keys of a configuration of which a verb makes nothing: packages that only they need may be absent."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # A misspelt option must not pass as the beginning of another.
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def parse_path(self, path: str | os.PathLike[str], **options: Any) -> Namespace:
        """A configuration file; jsonargparse would read it in the encoding of the locale.

        Raises:
            ConfigError: If it is not UTF-8 or not YAML, or says something twice.
        """
        file = Path(path)
        text = read_configuration(file, self.unread)
        with chdir(file.absolute().parent):  # files that it names otherwise than as its parts lie beside it
            parsed: Namespace = self.parse_string(text, path=file.name, **options)
        return parsed

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Namespace:  # type: ignore[override]
        """As jsonargparse does, with `~` and environment variables in paths replaced.

        Raises:
            ConfigError: If a configuration is not there, or a value says something twice.
        """
        words = with_parts(_with_expanded_configs(sys.argv[1:] if args is None else args))
        check_words(words)
        parsed: Namespace = _with_expanded_paths(super().parse_args(words, *more, **options))
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the short form.

        Raises:
            ConfigError: With one line.
        """
        if not self.exit_on_error:
            # jsonargparse is only trying one alternative of several.
            super().error(message, ex)
        cause = user_error_in(ex)
        raise cause or ConfigError(self.shorten(message)) from ex

    def shorten(self, message: str) -> str:
        """The innermost problem in a message of jsonargparse, in one line."""
        place = ".".join(key for key in KEY.findall(message) if "[" not in key)
        if missing := missing_package(message):
            return f"{place}: {missing}" if place else missing
        if found := UNKNOWN_OPTION.search(message):
            classes = CLASS_PROBLEM.findall(message) + CALLED_CLASS.findall(message)
            names = _parameters(classes[-1]) if classes else self._options_near(found[1])
            where = f"{place}: " if place else ""
            if found[1] in SHAPING_OPTIONS and classes and classes[-1].startswith("lit_sft.stages."):
                return f"{where}option {found[1]!r} is not accepted. {WHY_UNSHAPED}"
            return (
                f"{where}option {found[1]!r} is not accepted. {accepted(found[1], names, self._meant(found[1], names))}"
            )
        if found := UNKNOWN_TOP_LEVEL.search(message):
            name = found[1] or found[2]
            names = self._options_near(name)
            wrong = name if any("." in option for option in names) else name.partition(".")[0]
            return f"option {name!r} is not accepted. {accepted(wrong, names, self._meant(name, names))}"
        chosen = self.base_classes.get(place.rpartition(".")[2])
        if chosen and ABSTRACT_CLASS.search(message):
            return f"{place} names no class. {_with_a_class(place, discover(*chosen), message)}"
        names = list(discover(*chosen)) if chosen else _names_of_lightning(place)
        if (found := UNKNOWN_CLASS.search(message)) and (names or not NUMBER.search(message)):
            if found[1] in names:
                return f"{place}: {found[1]} cannot be used: a package that it needs is not installed"
            hint = accepted(found[1], names) if names else "Give its full path, such as package.module.Class"
            return f"{place}: there is no class {found[1]!r}. {hint}"
        if found := NO_CALLABLE.search(message):
            return f"{place}: {found[1]}"
        if found := REQUIRED.search(message):
            keys = [key.strip().removeprefix("fit.") for key in found[1].split(",")]
            missing = ", ".join(f"{place}.{key}" if place else key for key in keys)
            hint = ". A configuration gives them: --config configs/...yaml" if self.base_classes else ""
            return f"required and not given: {missing}{hint}"
        if place and (wanted := EXPECTED.findall(message)):
            given = GIVEN.search(message)
            value = f", not {(given[1] or given[2]).strip()[:80]}" if given else ""
            types = " or ".join(re.sub(r"<class '([\w.]+)'>", r"\1", kind.strip()) for kind in wanted)
            remedy = ". Put it in brackets: [...]" if types == "list" else ""
            return f"{place} expects {types}{value}{remedy}"
        return re.sub(r'Parser key "([\w.]+)":', r"\1:", " ".join(message.split())[:400])

    def _meant(self, name: str, names: Iterable[str]) -> str | None:
        """What an option is called here, or where it stands."""
        if found := ours(name, names):
            return found
        if not self.base_classes:
            return None
        options = {action.dest for parser in _with_verbs(self) for action in parser._actions}
        inner = (f"{place}{option}" for place, owner in LEVELS.items() for option in _parameters(owner))
        return ours(name, sorted(options, key=lambda option: option.count("."))) or ours(name, inner)

    def _options_near(self, name: str) -> list[str]:
        """Dotted options on the level of `name`, of this parser and its verbs."""
        prefix = name.rpartition(".")[0]
        options = {action.dest for parser in _with_verbs(self) for action in parser._actions} - {
            "subcommand",
            "print_shtab",
        }
        level = sorted(dest for dest in options if dest.rpartition(".")[0] == prefix)
        return level or sorted({dest.partition(".")[0] for dest in options})


def missing_package(message: str) -> str | None:
    """What to install, where a message says that a class of a configuration needs a package that is not there."""
    found = MISSING_PACKAGE.search(message)
    if not found:
        return None
    name, classes = found[1] or found[2], CLASS_PROBLEM.findall(message)
    needed = f"{classes[-1].rpartition('.')[2]} needs a package" if classes else "a package is needed"
    return f"{needed} that is not installed: pip install {name}"


def _with_a_class(place: str, classes: Mapping[str, type], message: str) -> str:
    """How to write what was given without a class, as the first of the classes that takes it."""
    given: Any = None
    for found in GIVEN.finditer(message):
        try:
            given = ast.literal_eval(found[1] or found[2])
        except (SyntaxError, ValueError):
            continue
    for key in place.split(".")[1:]:
        given = given.get("init_args", given).get(key) if isinstance(given, dict) else None
    options = renamed(given) if isinstance(given, dict) else {}
    fitting = [name for name, each in classes.items() if options.keys() <= {*_parameters(_path(each))}]
    name = (fitting or sorted(classes))[0] if options else "NAME"
    written = f"{{class_path: {name}, init_args: {{{', '.join(f'{k}: {v}' for k, v in options.items()) or '...'}}}}}"
    return f"Write {place.rpartition('.')[2]}: {written}. Accepted: {', '.join(sorted(classes))}"


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _names_of_lightning(place: str) -> list[str]:
    module = LIGHTNINGS.get(place.rpartition(".")[2])
    return list(import_module(module).__all__) if module else []


def expanded(path: str) -> str:
    """A path with `~`, `$NAME` and `${NAME}` replaced; a name that is not set stays, and shows in the error."""
    return os.path.expanduser(os.path.expandvars(path))


def _with_expanded_configs(words: Sequence[str]) -> list[str]:
    """The files that are read while the words are parsed."""
    found = list(words)
    for place, word in enumerate(words):
        option, equals, path = word.partition("=")
        if option in CONFIG_OPTIONS and equals:
            path = expanded(path)
            found[place] = f"{option}={path}"
        elif place and words[place - 1] in CONFIG_OPTIONS:
            path = found[place] = expanded(word)
        else:
            continue
        check_is_there(path)
    return found


def _with_expanded_paths(values: Any, key: str = "") -> Any:
    """Namespaces and dictionaries are changed in place."""
    if isinstance(values, str):
        return expanded(values) if key in PATH_OPTIONS else values
    if isinstance(values, list):
        return [_with_expanded_paths(value, key) for value in values]
    if isinstance(values, Namespace | dict):
        inner = vars(values) if isinstance(values, Namespace) else values
        for name, value in inner.items():
            inner[name] = _with_expanded_paths(value, name)
    return values


def user_error_in(error: BaseException | None) -> UserError | None:
    """The mistake of the user that an exception passes on, if it does; not one that was being handled when it came."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, UserError):
            return error
        seen.add(id(error))
        error = error.__cause__
    return None


def _parameters(class_path: str) -> list[str]:
    """Names of what a class takes, those of its bases included."""
    module, _, name = class_path.rpartition(".")
    parser = ArgumentParser(exit_on_error=False)
    # Optimizers of other libraries declare no types, and get their `params` from us.
    keys: Iterable[str] = parser.add_class_arguments(getattr(import_module(module), name), fail_untyped=False)
    return [key for key in keys if "." not in key and key != "params"]


def _with_verbs(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action.choices, dict):
            yield from (choice for choice in action.choices.values() if isinstance(choice, ArgumentParser))


class KindParser(ShortErrorParser):
    """A parser that knows the classes of each kind by their short names."""

    base_classes = BASE_CLASSES


def build(key: str, kind: Any, value: Any) -> Any:
    """An object from its class_path and init_args.

    Args:
        key: Where it would stand in a configuration.
        kind: Type of the parameter that takes it, such as `Strategy` or `Strategy | list[Strategy]`.
        value: What would stand there.

    Raises:
        ConfigError: With one line.
    """
    discover(*BASE_CLASSES[key])  # makes short names known
    parser = KindParser()
    parser.add_argument(f"--{key}", type=kind)
    return _made(parser, {key: value})[key]


def stage_and_data(config: dict[str, Any]) -> tuple[Stage, CorpusData]:
    """What `model` and `data` of a run's configuration stand for, no weight loaded.

    Raises:
        UserError: If the checkpoint or a corpus is not there.
    """
    from lit_sft.data._base import CorpusData
    from lit_sft.stages._base import Stage

    for bases in BASE_CLASSES.values():
        discover(*bases)
    parser = KindParser()
    parser.add_argument("--seed_everything", type=int)
    # As LightningCLI does: the optimizers of other libraries declare no types.
    parser.add_subclass_arguments(Stage, "model", fail_untyped=False)
    parser.add_subclass_arguments(CorpusData, "data", fail_untyped=False)
    parser.link_arguments("model", "data.init_args.text", lambda model: model.checkpoint, apply_on="instantiate")
    parser.link_arguments("seed_everything", "data.init_args.seed")
    opened = _made(parser, {key: config[key] for key in ("seed_everything", "model", "data")})
    return opened.model, opened.data


def _made(parser: KindParser, values: dict[str, Any]) -> Any:
    try:
        return parser.instantiate_classes(parser.parse_object(values))
    except ValueError as error:  # jsonargparse wraps what a constructor raises
        raise user_error_in(error) or error from None
