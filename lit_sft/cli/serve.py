"""The verb serve: a model behind the API of OpenAI."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from lit_sft.checkpoint.files import is_exported
from lit_sft.cli._source import DType, QuantType, open_source
from lit_sft.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from lit_sft.chat.network import Source

API_KEY = "LIT_SFT_API_KEY"
"""Environment variable that holds what requests must bring: an option would be seen in the list of processes."""


def serve(
    checkpoint: str | None = None,
    adapter: str | None = None,
    run: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_rows: int = 16,
    max_waiting: int = 256,
    max_tokens: int = 2048,
    dtype: DType | None = None,
    quantization: QuantType | None = None,
    family: str = "auto",
    prompt_format: str | None = None,
) -> None:
    """Serve a model over HTTP in the form of OpenAI's API; under an adapter its base, too, as a second model.

    Requests must bring the key that the environment variable LIT_SFT_API_KEY holds, if it holds one.

    Args:
        checkpoint: Model folder in its original layout; what the newest run in runs/ trained if not given.
        adapter: PEFT folder on it.
        run: Run folder whose model to serve.
        host: Address to listen on; only this machine reaches the default.
        port: To listen on; 0 for one that is free.
        max_rows: Requests that are answered at once.
        max_waiting: Requests that may wait beside them; more are refused.
        max_tokens: Of an answer at most.
        dtype: Type of the weights; that of the run, else bfloat16 on a GPU and float32 on a CPU.
        quantization: Quantize while loading; as the run did if not given.
        family: Name of the model family, or `auto` to recognize it.
        prompt_format: Name of one of the family's prompt formats; its default if not given.

    Raises:
        UserError: If the options do not go together or the model cannot be loaded.
    """
    _check_positive(max_rows=max_rows, max_waiting=max_waiting, max_tokens=max_tokens)
    _check_packages()
    import uvicorn

    with _listen(host, port) as listening:  # before the network loads
        source, named = open_source(checkpoint, adapter, run, dtype, quantization, family, prompt_format)
        models = _names(source, Path(named))
        app = _application(source, models, max_rows, max_waiting, max_tokens)
        address = f"http://{host}:{listening.getsockname()[1]}/v1"
        sys.stderr.write(f"models {', '.join(models)} at {address}; Ctrl-C to stop\n")
        settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=30)
        uvicorn.Server(settings).run(sockets=[listening])


def _check_positive(**limits: int) -> None:
    for name, value in limits.items():
        if value < 1:
            raise ConfigError(f"--{name} is {value}; it must be at least 1")


def _check_packages() -> None:
    try:
        for name in ("uvicorn", "lit_sft.serve.app"):
            import_module(name)
    except ImportError as error:
        raise ConfigError(f"serve needs {error.name}: pip install 'lit_sft[serve]'") from None


def _application(source: Source, models: dict[str, bool], max_rows: int, max_waiting: int, max_tokens: int) -> FastAPI:
    from lit_sft.chat.network import Network
    from lit_sft.generation.strategies import Greedy
    from lit_sft.serve.answering import Answerer
    from lit_sft.serve.app import make_app
    from lit_sft.serve.engine import Engine

    if is_exported(source.checkpoint.path):
        raise ConfigError(
            f"{source.checkpoint.path} is an exported graph: serve joins requests in networks of torch only. Give the "
            "checkpoint that it was made of; chat and predict take the graph"
        )
    network = Network(source)
    answerer = Answerer(network, Engine(network, max_rows, max_waiting))
    api_key = os.environ.get(API_KEY) or None
    return make_app(answerer, models, source.strategy or Greedy(), max_tokens=max_tokens, api_key=api_key)


def _listen(host: str, port: int) -> socket.socket:
    """A socket at the address.

    Raises:
        ConfigError: If it is not to be had.
    """
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"--port is {port}; it must be between 0 and 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as failed:
            listening = failed.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            failed.pop_all()
    except OSError as error:
        raise ConfigError(f"{host}:{port}: {error.strerror}. Give another --port or --host") from None
    return listening


def _names(source: Source, named: Path) -> dict[str, bool]:
    """What can be asked for, by the names of folders: the tuned model, and under an adapter its base."""
    if source.adapter is None:
        return {named.resolve().name: True}
    adapter = source.adapter.resolve()
    tuned = adapter.parent.name if adapter.name == "adapter" else adapter.name
    return {tuned: True, source.checkpoint.path.resolve().name: False}
