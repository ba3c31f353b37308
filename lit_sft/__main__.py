"""python -m lit_sft VERB ...: a table of verbs; a verb's module is imported when it is called."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from inspect import signature
from typing import NoReturn

import lit_sft
from lit_sft.display import harmless, visible
from lit_sft.errors import Stopped, UserError, accepted
from lit_sft.spellings import OTHER_VERBS
from lit_sft.streams import steady_streams

CONFIGURED_VERBS = {
    "preview": ("lit_sft.cli.preview", "show what the model will see of the data"),
    "check": ("lit_sft.cli.check", "say whether a fit will work: its memory, then one step of everything"),
    "fit": ("lit_sft.cli.fit", "fine-tune a model: fit --config configs/quickstart.yaml"),
    "validate": ("lit_sft.cli.fit", "measure a run, or a base model, on the validation split"),
    "test": ("lit_sft.cli.fit", "measure it on the test corpora"),
    "predict": ("lit_sft.cli.fit", "answer prompts; without options those held out from the newest run"),
    "compare": ("lit_sft.cli.compare", "compare a model before and after tuning: a report to publish"),
}
FUNCTION_VERBS = {
    "tiny": ("lit_sft.cli.tiny:tiny", "make a small random checkpoint in the original layout"),
    "chat": ("lit_sft.cli.chat:chat", "talk to a model; without options to that of the newest run"),
    "serve": ("lit_sft.cli.serve:serve", "serve a model over HTTP, in the form of OpenAI's API"),
    "evaluate": ("lit_sft.cli.evaluate:evaluate", "measure a model on C-Eval, CMMLU or ADGEN"),
    "merge": ("lit_sft.cli.merge:merge", "merge the adapter of a run into its base: a checkpoint of its own"),
    "runs": ("lit_sft.cli.runs:runs", "list the runs: state, steps, loss before and after"),
    "export": ("lit_sft.cli.export:export", "write a model as an ONNX graph: export --run RUN --output DIR"),
    "summary": ("lit_sft.cli.summary:summary", "print what a run learned"),
}
EPILOG = """\
Every verb explains itself: python -m lit_sft VERB --help
--debug shows the traceback of an error."""


def main(arguments: list[str] | None = None) -> int:
    """Run a verb and return the exit code: 0 done, 2 a mistake that the message explains, 128 + n after signal n."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    is_debugging = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return _run(words)
    except UserError as error:
        if is_debugging:
            traceback.print_exc()
        print(f"error: {visible(str(error))}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"stopped by {signal.Signals(stopped.signal).name}", file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _run(words: list[str]) -> int:
    verb = words[0] if words else "--help"
    if verb in {"-h", "--help", "help"}:
        print(_help())
    elif verb == "--version":
        print(f"lit_sft {lit_sft.__version__}")
    elif verb in CONFIGURED_VERBS:
        with _nothing_collected():
            module = import_module(CONFIGURED_VERBS[verb][0])
        module.main(words)
    elif verb in FUNCTION_VERBS:
        path, _, name = FUNCTION_VERBS[verb][0].partition(":")
        with _nothing_collected():
            from jsonargparse import auto_cli

            from lit_sft.configuration import ShortErrorParser

            function = getattr(import_module(path), name)
        auto_cli(
            function,
            args=_with_flags(function, [_underscored(word) for word in words[1:]]),
            prog=f"python -m lit_sft {verb}",
            as_positional=False,
            parser_class=ShortErrorParser,
        )
    else:
        meant = OTHER_VERBS.get(verb.lower())
        raise UserError(f"unknown verb {verb!r}. {accepted(verb, [*CONFIGURED_VERBS, *FUNCTION_VERBS], meant)}")
    return 0


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Without the garbage collector, which would go over and over the objects that imports make, and which stay."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def _with_flags(function: Callable[..., None], words: list[str]) -> list[str]:
    """`--portable` as well as `--portable true`."""
    flags = {f"--{name}" for name, given in signature(function).parameters.items() if given.default is False}
    followed = zip(words, [*words[1:], "--"], strict=False)
    return [f"{word}=true" if word in flags and after.startswith("--") else word for word, after in followed]


def _underscored(word: str) -> str:
    """`--hidden-size` as well as `--hidden_size`."""
    option, equals, value = word.partition("=")
    return option.replace("-", "_").replace("__", "--", 1) + equals + value if word.startswith("--") else word


def _help() -> str:
    lines = [f"  {verb:<10}{text}" for verb, (_, text) in (CONFIGURED_VERBS | FUNCTION_VERBS).items()]
    about = (lit_sft.__doc__ or "").partition("\n")[0]
    return "\n".join([about, "", "usage: python -m lit_sft VERB [options]", "", *lines, "", EPILOG])


def leave(code: int) -> NoReturn:
    """End the process. Threads of gloo, which a sharded run leaves behind, could abort an interpreter that winds up."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not (distributed.is_available() and distributed.is_initialized()):
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_and_leave(arguments: list[str] | None = None) -> NoReturn:
    """Run a verb and end the process with its exit code; 1, after the traceback, for an error that is our own."""
    words = sys.argv[1:] if arguments is None else arguments
    steady_streams(ends_unread="chat" in words[:1])  # which would answer for nobody
    try:
        code = main(words)
    except Exception:
        sys.stderr.write(harmless(traceback.format_exc()))
        code = 1
    leave(code)


if __name__ == "__main__":
    run_and_leave()
