"""python -m lit_sft chat: talk to a model in the terminal, or through a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, cast

from lit_sft.cli._source import DType, QuantType, open_source
from lit_sft.display import visible
from lit_sft.errors import ConfigError, UserError

if TYPE_CHECKING:
    from lit_sft.chat.network import Source
    from lit_sft.chat.session import Session


def chat(
    checkpoint: str | None = None,
    adapter: str | None = None,
    run: str | None = None,
    dtype: DType | None = None,
    quantization: QuantType | None = None,
    family: str = "auto",
    prompt_format: str | None = None,
) -> None:
    """Talk to a model, streamed, in as many rounds as fit; /help lists the commands.

    Args:
        checkpoint: Model folder in its original layout; what the newest run in runs/ trained if not given.
        adapter: PEFT folder on it, which /base and /tuned switch off and on.
        run: Run folder whose model to talk to.
        dtype: Type of the weights; that of the run, else bfloat16 on a GPU and float32 on a CPU.
        quantization: Quantize while loading; as the run did if not given.
        family: Name of the model family, or `auto` to recognize it.
        prompt_format: Name of one of the family's prompt formats; its default if not given.

    Raises:
        UserError: If the options do not go together or the model cannot be loaded.
    """
    for stream in (sys.stdin, sys.stdout):
        cast(Any, stream).reconfigure(encoding="utf-8", errors="replace")
    source, name = open_source(checkpoint, adapter, run, dtype, quantization, family, prompt_format)
    _converse(source, f"{name}: {source.checkpoint.family.name}. /help lists the commands")


def _converse(source: Source, greeting: str) -> None:
    """Load the model, and answer until nobody asks, or reads, any more."""
    from lit_sft.chat.network import Network
    from lit_sft.chat.session import Session, notice

    session = Session(Network(source), _write)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        notice(greeting)
    try:
        if is_terminal:
            _talk(session, _typed())
        else:
            _answer_lines(session, iter(sys.stdin))
    except KeyboardInterrupt:
        notice("")
    except BrokenPipeError:
        # The interpreter would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _talk(session: Session, lines: Iterator[str]) -> None:
    for line in lines:
        text = line.strip()
        try:
            if text.startswith("/"):
                if not session.command(text):
                    return
            elif text:
                session.answer(text)
        except UserError as error:
            sys.stderr.write(f"error: {visible(str(error))}\n")
        except KeyboardInterrupt:
            sys.stderr.write("stopped\n")


def _answer_lines(session: Session, lines: Iterator[str]) -> None:
    r"""One line of output for each line of input, every one a conversation of its own; line breaks become `\n`.

    Raises:
        ConfigError: At the end, if lines have an empty one because they could not be answered.
    """
    pieces: list[str] = []
    session.write = pieces.append
    failed = 0
    for number, line in enumerate(lines, start=1):
        pieces.clear()
        session.messages = []
        try:
            if line.strip() and not session.answer(line.strip()):
                return  # Ctrl-C: nobody is there to ask on
        except UserError as error:
            failed += 1
            sys.stderr.write(f"error: line {number}: {error}\n")
        answer = "".join(pieces).strip().replace("\r", "")
        _write(answer.replace("\n", "\\n") + "\n")
    if failed:
        raise ConfigError(f"{failed} of the lines could not be answered; theirs are empty")


def _typed() -> Iterator[str]:
    """Lines typed after a prompt, until Ctrl-D."""
    import readline  # noqa: F401 - lets input() edit and recall lines

    while True:
        try:
            yield input("> ")
        except EOFError:
            _write("\n")
            return
        except KeyboardInterrupt:
            # Meant, perhaps, for an answer that ended just now: the conversation must not be lost.
            _write("\n")


def _write(text: str) -> None:
    out: IO[str] = sys.stdout
    out.write(text)
    out.flush()
