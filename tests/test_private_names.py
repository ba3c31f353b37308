"""Private names of other libraries, which a release may change without a word, stand in one list with the reason."""

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
DOCUMENTED = {"_asdict", "_exit", "_replace"}  # of os and of named tuples: public in spite of their names
FILES = sorted((ROOT / "lit_sft").rglob("*.py"))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name.strip("_") != ""


def defined(tree: ast.AST) -> Iterator[str]:
    """Private names that a file of ours gives to something."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}:
                yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def used(tree: ast.AST) -> Iterator[str]:
    """Private names that a file reads, sets, imports or asks for by a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".")
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
            yield from (str(word.value) for word in node.args if isinstance(word, ast.Constant))


def overridden(module: ModuleType) -> Iterator[str]:
    """Private names that classes of ours define and classes of other libraries have, too."""
    for cls in vars(module).values():
        if inspect.isclass(cls) and cls.__module__ == module.__name__:
            foreign = [base for base in cls.__mro__ if not base.__module__.startswith("lit_sft")]
            yield from (name for name in vars(cls) if any(name in vars(base) for base in foreign))


def names_in_code() -> set[str]:
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}
    ours = {name for tree in trees.values() for name in defined(tree)} | {file.stem for file in FILES}
    foreign = {name for tree in trees.values() for name in used(tree)} - ours - DOCUMENTED
    for file, tree in trees.items():
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        # what the file itself defines: libraries write into classes of ours as they run (tqdm: its lock)
        foreign.update(set(defined(tree)).intersection(overridden(import_module(module))))
    return set(filter(is_private, foreign))


def test_the_list_of_private_names_is_that_of_the_code() -> None:
    page = (ROOT / "docs" / "private_names.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert listed == sorted(listed)
    assert set(listed) == names_in_code()
