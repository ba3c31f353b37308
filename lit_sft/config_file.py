"""A configuration as text: UTF-8 in every locale, sound YAML, and no key twice, of which YAML would keep the last."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

from lit_sft.errors import ConfigError


def read_configuration(file: Path) -> str:
    """The text of a YAML file.

    Raises:
        ConfigError: If it cannot be read, is not UTF-8, is not YAML, or says something twice.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        raise ConfigError(f"{file}, line {line}: not UTF-8. Convert the file, for example with iconv") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        hint = ". YAML is indented with spaces, not with tabs" if "'\\t'" in str(error.problem) else ""
        raise ConfigError(f"{file}, line {line}: {error.problem}{hint}") from None
    except (yaml.YAMLError, RecursionError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ConfigError(f"{file} is not YAML: {problem}") from None
    _refuse_twins(str(file), root)
    return text


def check_words(words: Iterable[str]) -> None:
    """Look through what is given as YAML on the command line.

    Raises:
        ConfigError: If one of the words says something twice.
    """
    for word in words:
        option, equals, given = word.partition("=")
        value = given if equals and option.startswith("--") else word
        if not value.lstrip().startswith(("{", "[")):
            continue
        try:
            root = yaml.compose(value, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError):
            continue  # the parser says so, if it is read as YAML at all
        _refuse_twins("command line", root)


def _refuse_twins(file: str, root: yaml.Node | None) -> None:
    waiting, seen = [("", root)], set[int]()
    while waiting:
        place, node = waiting.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += [(f"{place}[{index}]", item) for index, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                name, line = f"{place}.{key.value}".removeprefix("."), key.start_mark.line + 1
                if name in lines:
                    said = f"{file}: key {name} stands twice, in lines {lines[name]} and {line}"
                    raise ConfigError(f"{said}. Put both together, or leave one out")
                lines[name] = line
                waiting.append((name, value))
