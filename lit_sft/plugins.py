"""A folder is a registry: the subclasses found in its modules are its members.

Adding a family, corpus, tuning, stage or strategy is adding a file or folder; nothing else lists them. Another package
adds members by an entry point of the group that is named after the folder: `lit_sft.corpora` for a corpus.
"""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import EntryPoints, distributions
from typing import TypeVar

from lit_sft.errors import ConfigError

T = TypeVar("T")


def discover(*bases: str) -> dict[str, type]:
    """The members of the folders in which base classes lie: `discover("lit_sft.tuning._base.Tuning")`."""
    found: dict[str, type] = {}
    for base in bases:
        module, _, name = base.rpartition(".")
        found |= members(module.rpartition(".")[0], getattr(importlib.import_module(module), name))
    return found


def members(package: str, base: type[T]) -> dict[str, type[T]]:
    """Concrete subclasses of `base` in the modules of `package` and of the folders in it, by class name.

    What starts with `_`, and the folder `shared`, hold no members.

    Importing the modules also makes their short class names known to the command line.

    Raises:
        ConfigError: If another package adds what is not such a class.
    """
    found: dict[str, type[T]] = {}
    folder = importlib.import_module(package).__path__
    for module_info in pkgutil.walk_packages(folder, prefix=f"{package}."):
        inside = module_info.name.removeprefix(f"{package}.").split(".")
        if inside[0] == "shared" or any(part.startswith("_") for part in inside):
            continue
        module = importlib.import_module(module_info.name)
        for name, value in vars(module).items():
            is_member = inspect.isclass(value) and issubclass(value, base) and not inspect.isabstract(value)
            if is_member and value.__module__ == module.__name__:
                found[name] = value
    for entry in _added(tuple(sys.path)).select(group=package):
        added = entry.load()
        if not (inspect.isclass(added) and issubclass(added, base)):
            raise ConfigError(f"the entry point {entry.name} = {entry.value} of {package} is not a {base.__name__}")
        found[added.__name__] = added
    return found


@cache
def _added(path: Sequence[str]) -> EntryPoints:
    """What all packages on that path add to all folders: to read it takes long."""
    return EntryPoints(point for installed in distributions() for point in installed.entry_points)
