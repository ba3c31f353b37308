"""Processes that begin as new ones do, but with the libraries imported: that takes longest.

They are forked from one that only imported; a process that has trained cannot be forked.
"""

import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing import get_context, set_start_method
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["lit_sft.cli.fit", "peft", "bitsandbytes", "torch.utils.tensorboard"])


def start(
    action: Callable[..., Any], *arguments: Any, log: Path, environment: Mapping[str, str] | None = None
) -> BaseProcess:
    """A process that calls `action`; what it and its children print goes to a file."""
    process = CONTEXT.Process(target=_call, args=(action, arguments, log, {**os.environ, **(environment or {})}))
    process.start()
    return process


def _call(action: Callable[..., Any], arguments: tuple[Any, ...], log: Path, environment: dict[str, str]) -> None:
    # As in a new process: workers that load data are its own children and end with it, also when it is killed.
    set_start_method("fork", force=True)
    os.environ.clear()
    os.environ.update(environment)
    with log.open("wb") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    action(*arguments)


def run(words: list[str], log: Path) -> tuple[int | None, str]:
    """The exit code of `python -m lit_sft`, None if it does not end, and what it printed."""
    process = start(run_words, words, log=log)
    process.join(400)
    return process.exitcode, log.read_text(encoding="utf-8")


def run_words(words: list[str]) -> None:
    """Do what `python -m lit_sft` does."""
    from lit_sft.__main__ import run_and_leave

    run_and_leave(words)
