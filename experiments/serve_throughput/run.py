"""Sixteen requests at once against one after another, through both servers and over HTTP.

    make cpp
    python experiments/serve_throughput/run.py

The network is a random Baichuan-7B of 30 million parameters in float32; answers are as long as they may be.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import onnxruntime
import torch
import uvicorn

from lit_sft.chat.network import Network, Source
from lit_sft.checkpoint.opening import find_family, open_checkpoint
from lit_sft.checkpoint.tiny import demo_texts
from lit_sft.export.check import Sample
from lit_sft.export.folder import Source as Exported
from lit_sft.export.folder import export_onnx
from lit_sft.families._base import TinySize
from lit_sft.generation.strategies import Greedy
from lit_sft.serve.answering import Answerer
from lit_sft.serve.app import make_app
from lit_sft.serve.engine import Engine

ROOT = Path(__file__).parents[2]

SIZE = TinySize(
    hidden_size=512, intermediate_size=1376, num_layers=8, num_heads=8, vocab_size=4000, context_length=1024
)

Serving = Callable[[Path, argparse.Namespace], AbstractContextManager[str]]
"""Serves a checkpoint while it is open, and gives the address."""


def main() -> None:
    """Print the medians of each server."""
    options = _options()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        folder.mkdir()
        torch.manual_seed(0)
        find_family("baichuan-7b").write_tiny(folder, demo_texts(), SIZE)
        for program in options.programs:
            with SERVERS[program](folder, options) as url:
                alone, together = measured(url, options)
            ratio = statistics.median(b / a for a, b in zip(alone, together, strict=True))
            print(f"{program}: tokens/s one after another {statistics.median(alone):.0f}, {options.requests} at once "
                  f"{statistics.median(together):.0f}: {ratio:.2f} times")  # fmt: skip


def measured(url: str, options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Tokens a second one after another and all at once, of each repetition."""
    texts = [text for text in demo_texts() if text.strip()][: options.requests]

    def ask(text: str) -> int:
        body = {"model": "model", "messages": [{"role": "user", "content": text}], "max_tokens": options.tokens}
        request = Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urlopen(request) as answer:
            return int(json.load(answer)["usage"]["completion_tokens"])

    def per_second(at_once: int) -> float:
        began = time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            num_tokens = sum(pool.map(ask, texts))
        return num_tokens / (time.perf_counter() - began)

    ask(texts[0])
    turns = [(per_second(1), per_second(options.requests)) for _ in range(options.repetitions)]
    return [alone for alone, _ in turns], [together for _, together in turns]


@contextmanager
def serve(folder: Path, options: argparse.Namespace) -> Iterator[str]:
    """The verb, in a thread of this process."""
    torch.set_num_threads(options.threads)
    network = Network(Source(open_checkpoint(folder), dtype=torch.float32))
    answerer = Answerer(network, Engine(network, options.requests, 256))
    app = make_app(answerer, {"model": True}, Greedy(), max_tokens=512, api_key=None)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@contextmanager
def lit_sft_server(folder: Path, options: argparse.Namespace) -> Iterator[str]:
    """The program in C++, of the same weights as a graph."""
    checkpoint = open_checkpoint(folder)
    graph = folder.with_name("graph") / "model"
    graph.parent.mkdir()
    prompt = checkpoint.load_tokenizer().encode_text(demo_texts()[0])
    export_onnx(Exported(checkpoint, [Sample([int(index) for index in prompt], [-100] * len(prompt))]), graph)
    command = [str(options.build / "lit-sft-server"), "--model", str(graph), "--quiet", "--port", "0"]
    command += ["--threads", str(options.threads), "--parallel", str(options.requests)]
    runtime = Path(onnxruntime.__file__).parent / "capi"
    environment = {**os.environ, "LIT_SFT_ORT": str(runtime)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr
        said = process.stderr.readline()
        if "/v1;" not in said:
            raise RuntimeError(said + process.stderr.read())
        yield said[said.index("http") : said.index("/v1;")]
        process.terminate()


SERVERS: dict[str, Serving] = {"serve": serve, "lit-sft-server": lit_sft_server}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", nargs="+", choices=SERVERS, default=[*SERVERS])
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "cpp", help="where `make cpp` has built")
    return parser.parse_args()


if __name__ == "__main__":
    main()
