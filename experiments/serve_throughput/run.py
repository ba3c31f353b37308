"""Sixteen requests at once against one after another, through the server and over HTTP.

    python experiments/serve_throughput/run.py

The network is a random Baichuan-7B of 30 million parameters; answers are as long as they may be.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request, urlopen

import torch
import uvicorn

from lit_sft.chat.network import Network, Source
from lit_sft.checkpoint.opening import find_family, open_checkpoint
from lit_sft.checkpoint.tiny import demo_texts
from lit_sft.families._base import TinySize
from lit_sft.generation.strategies import Greedy
from lit_sft.serve.answering import Answerer
from lit_sft.serve.app import make_app
from lit_sft.serve.engine import Engine

SIZE = TinySize(
    hidden_size=512, intermediate_size=1376, num_layers=8, num_heads=8, vocab_size=4000, context_length=1024
)


def started(folder: Path, max_rows: int) -> tuple[uvicorn.Server, threading.Thread, str]:
    """A server in a thread."""
    network = Network(Source(open_checkpoint(folder), dtype=torch.float32))
    app = make_app(
        Answerer(network, Engine(network, max_rows, 256)), {"model": True}, Greedy(), max_tokens=512, api_key=None
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    return server, thread, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    texts = [text for text in demo_texts() if text.strip()][: options.requests]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        folder.mkdir()
        torch.manual_seed(0)
        find_family("baichuan-7b").write_tiny(folder, demo_texts(), SIZE)
        server, thread, url = started(folder, options.requests)

        def ask(text: str) -> int:
            body = {"model": "model", "messages": [{"role": "user", "content": text}], "max_tokens": options.tokens}
            request = Request(
                f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urlopen(request) as answer:
                return int(json.load(answer)["usage"]["completion_tokens"])

        def per_second(at_once: int) -> float:
            began = time.perf_counter()
            with ThreadPoolExecutor(at_once) as pool:
                num_tokens = sum(pool.map(ask, texts))
            return num_tokens / (time.perf_counter() - began)

        ask(texts[0])
        alone, together = [], []
        for _ in range(options.repetitions):
            alone.append(per_second(1))
            together.append(per_second(options.requests))
        server.should_exit = True
        thread.join()
    ratios = [b / a for a, b in zip(alone, together, strict=True)]
    print(f"tokens/s one after another {statistics.median(alone):.0f}, {options.requests} at once "
          f"{statistics.median(together):.0f}: {statistics.median(ratios):.2f} times")  # fmt: skip


if __name__ == "__main__":
    main()
