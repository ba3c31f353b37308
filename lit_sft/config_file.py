"""A configuration as text: UTF-8 in every locale, sound YAML, and no key twice, of which YAML would keep the last.

So are the files that it names in place of its parts, as in `data: data.yaml`; they are put in where they are named.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

import yaml

from lit_sft.errors import ConfigError

PARTS = frozenset(
    """
    model data trainer samples checkpoints predictions init_args tuning optimizer schedule generation objective
    rewards corpora test_corpora forgetting callbacks logger
    """.split()  # noqa: SIM905 - a list of them would be twenty lines long
)
"""Keys for whose value, or for an entry of whose list, a file may stand."""

OURS = Path("configs")

SUFFIXES = (".yaml", ".yml")

CORPORA = frozenset({"corpora", "test_corpora", "forgetting"})

DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".gz", ".zst", ".parquet", ".arrow")

HINTS = {
    "'\\t'": "YAML is indented with spaces, not with tabs",
    "cannot start any token": "Put the value in quotes",
    "mapping values are not allowed": "It is indented deeper than those around it, or its text with ': ' needs quotes",
    "could not find expected ':'": "A colon is missing in the line before, or its text needs quotes",
    "expected ','": "A bracket or brace is not closed",
    "expected <block end>": "The line is indented otherwise than those around it",
    "end of stream": "A quote, a bracket or a brace is not closed",
    "undefined alias": "Put a text that begins with * in quotes",
}
"""What YAML says of a mistake -> what was done wrong."""


def check_is_there(path: str) -> None:
    """See that a configuration can be opened before its text is asked for.

    Raises:
        ConfigError: If there is none; with the one that is meant, if it lies beside it or in `configs/`.
    """
    named = Path(path)
    if "\n" in path or path.startswith(("{", "-")) or (named.exists() and not named.is_dir()):
        return
    folders = (OURS / "overlays", OURS, named.parent)
    known = {file.stem: file for folder in folders for file in sorted(folder.glob("*.y*ml"))}
    near = difflib.get_close_matches(named.stem.lower(), known, n=1)
    raise ConfigError(f"{path} is not a file" + (f". Did you mean {known[near[0]]}?" if near else ""))


def read_configuration(file: Path, unread: Iterable[str] = ()) -> str:
    """The text of a YAML file, with the files that it names in place of its parts, without the keys `unread`.

    Raises:
        ConfigError: If one cannot be read, is not UTF-8, is not YAML, has no keys, or says something twice.
    """
    text, root, is_whole = _read(file, ())
    for key in unread:
        is_whole = not _leave_out(root, key.split(".")) and is_whole
    return text if is_whole else yaml.serialize(root, Dumper=yaml.SafeDumper, allow_unicode=True)


def _leave_out(node: yaml.Node, key: list[str]) -> bool:
    """Whether there was anything at the key."""
    if not isinstance(node, yaml.MappingNode):
        return False
    name, *inner = key
    if inner:
        return any(_leave_out(value, inner) for found, value in node.value if found.value == name)
    kept = [(found, value) for found, value in node.value if found.value != name]
    is_there = len(kept) < len(node.value)
    node.value = kept
    return is_there


def _read(file: Path, above: tuple[Path, ...]) -> tuple[str, yaml.Node, bool]:
    """Text and tree of a file, and whether the text says all that the tree does."""
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
        said = f"{error.context or ''} {error.problem}"
        hint = next((f". {remedy}" for mark, remedy in HINTS.items() if mark in said), "")
        raise ConfigError(f"{file}, line {line}: {error.problem}{hint}") from None
    except (yaml.YAMLError, RecursionError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ConfigError(f"{file} is not YAML: {problem}") from None
    if not isinstance(root, yaml.MappingNode | yaml.SequenceNode) or not (above or isinstance(root, yaml.MappingNode)):
        raise ConfigError(
            f"{file} holds no keys with values, such as `trainer: {{max_epochs: 1}}`; is it the right file?"
        )
    _refuse_twins(str(file), root)
    return text, root, not _put_in(root, file, above)


def _put_in(root: yaml.Node, file: Path, above: tuple[Path, ...]) -> bool:
    """Replace the names of files in a tree by their trees; whether there were any."""
    is_changed = False
    waiting: list[tuple[str, yaml.Node]] = [("", root)]
    seen = set[int]()
    while waiting:
        name, node = waiting.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))
        is_map = isinstance(node, yaml.MappingNode)
        inside = [(key.value, value) for key, value in node.value] if is_map else [(name, item) for item in node.value]
        for place, (key, value) in enumerate(inside):
            found = value
            if key in CORPORA and isinstance(value, yaml.ScalarNode):
                _refuse_data_file(f"{file}, line {value.start_mark.line + 1}: {key}", value.value)
            if key in PARTS and isinstance(value, yaml.ScalarNode) and value.value.endswith(SUFFIXES):
                found = _part(file, key, value, above)
                node.value[place] = (node.value[place][0], found) if is_map else found
                is_changed = True
            waiting.append((key, found))
    return is_changed


def _part(file: Path, key: str, value: yaml.ScalarNode, above: tuple[Path, ...]) -> yaml.Node:
    named = file.parent / Path(os.path.expandvars(value.value)).expanduser()
    where = f"{file}, line {value.start_mark.line + 1}: {key} names {value.value}"
    if not named.is_file():
        raise ConfigError(f"{where}, which is not a file beside it")
    if named.resolve() in above:
        raise ConfigError(f"{where}, which names this file in its turn")
    return _read(named, (*above, file.resolve()))[1]


def with_parts(words: Iterable[str]) -> list[str]:
    """The words of a command line with the content of a file in place of its name: `--data data.yaml`.

    Raises:
        ConfigError: As `read_configuration`.
    """
    found = list(words)
    for place, word in enumerate(found):
        option, equals, value = word.partition("=")
        if not equals and place:
            option, value = found[place - 1], word
        key = option.rpartition(".")[2].removeprefix("--").removesuffix("+")
        if not option.startswith("--") or key not in PARTS:
            continue
        if key in CORPORA:
            for name in value.strip("[]").split(",") if "{" not in value and "\n" not in value else ():
                _refuse_data_file(option, name.strip(" '\""))
        if _is_name(value):
            if not Path(value).is_file():
                raise ConfigError(f"{option} names {value}, which is not a file")
            content = read_configuration(Path(value))
            found[place] = f"{option}={content}" if equals else content
    return found


def _refuse_data_file(where: str, value: str) -> None:
    """What stands for a corpus is a class; jsonargparse would read a file of records as a configuration."""
    if value.endswith(SUFFIXES) or not ("/" in value or value.lower().endswith(DATA_SUFFIXES)):
        return
    written = f"{{class_path: Belle, init_args: {{path: {value}}}}}"
    raise ConfigError(
        f"{where} names the file {value}, not the class that reads it. Write [{written}], with the class of that "
        "layout in place of Belle"
    )


def _is_name(value: str) -> bool:
    return value.endswith(SUFFIXES) and "\n" not in value and "{" not in value


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
