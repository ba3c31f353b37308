"""Which code decides what is in the cache: it is part of the names there, and other code is not.

A change of a comment, of a network or of the command line throws nothing away; a change of anything that can give a
record another text, or a text other ids, does, wherever in the package it stands.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from lit_sft.data.cache import digest

PACKAGE = Path(__file__).parents[1]

LIBRARIES = ("jinja2", "orjson", "pyarrow", "sentencepiece", "tokenizers", "transformers")
"""Another version of these may read a record, render a template or cut a text in another way."""

UNDECIDING = re.compile(
    r"\w*network|\w*weights|alibi_dimensions|norm_head|packed_\w+|probe|saving|tiny|cache\w*|deciding_code|workers"
    r"|errors|plugins|files|display|__init__"
)
"""Modules that the others import, and that have no say in texts or ids: the network's side, and plain tools."""


@cache
def code_digest(*parts: str | type) -> str:
    """A name for the code of modules and classes, for all of ours that they import, and for the libraries.

    Args:
        parts: Names of modules in the package, or classes from anywhere.
    """
    code = sorted(_parsed(file).code for file in deciding_files(*parts))
    return digest(code, [(name, version(name)) for name in LIBRARIES])


def deciding_files(*parts: str | type) -> list[Path]:
    """The files whose code `code_digest` looks at."""
    files: dict[Path, None] = {}
    for part in parts:
        _follow(Path(inspect.getfile(part)) if isinstance(part, type) else _file_of(part), files)
    return list(files)


def _follow(file: Path | None, found: dict[Path, None]) -> None:
    if file is None or file in found or UNDECIDING.fullmatch(file.stem):
        return
    found[file] = None
    for name in _parsed(file).imports:
        _follow(_file_of(name), found)


def _imports_in(tree: ast.Module) -> Iterator[str]:
    """Names of the modules, and of what might be modules, that this one imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file_of(name: str) -> Path | None:
    """The file of a module of the package; None for anything else."""
    package, *parts = name.split(".")
    if package != PACKAGE.name or not parts:
        return None
    path = PACKAGE.joinpath(*parts)
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


class _Parsed(NamedTuple):
    imports: tuple[str, ...]
    code: str


@cache
def _parsed(file: Path) -> _Parsed:
    tree = ast.parse(file.read_bytes())
    return _Parsed(tuple(_imports_in(tree)), _code_of(tree))


def _code_of(tree: ast.Module) -> str:
    """What a module does, without what it says: comments, docstrings, line ends."""
    for node in ast.walk(tree):
        for body in (getattr(node, field, None) for field in ("body", "orelse", "finalbody")):
            if isinstance(body, list):
                body[:] = [statement for statement in body if not _is_text(statement)]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
