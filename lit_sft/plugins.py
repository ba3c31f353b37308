"""A folder is a registry: the subclasses found in its modules are its members.

Adding a family, corpus, tuning, stage or strategy is adding a file; nothing else lists them.
"""

import importlib
import inspect
import pkgutil
from typing import TypeVar

T = TypeVar("T")


def members_of(base: str) -> dict[str, type]:
    """The members of the folder in which a base class lies: `members_of("lit_sft.tuning._base.Tuning")`."""
    module, _, name = base.rpartition(".")
    return members(module.rpartition(".")[0], getattr(importlib.import_module(module), name))


def members(package: str, base: type[T]) -> dict[str, type[T]]:
    """Concrete subclasses of `base` in the public modules of `package` and of the folders in it, by class name.

    Importing the modules also makes their short class names known to the command line.
    """
    found: dict[str, type[T]] = {}
    folder = importlib.import_module(package).__path__
    for module_info in pkgutil.walk_packages(folder, prefix=f"{package}."):
        if module_info.name.rpartition(".")[2].startswith("_"):
            continue
        module = importlib.import_module(module_info.name)
        for name, value in vars(module).items():
            is_member = inspect.isclass(value) and issubclass(value, base) and not inspect.isabstract(value)
            if is_member and value.__module__ == module.__name__:
                found[name] = value
    return found
