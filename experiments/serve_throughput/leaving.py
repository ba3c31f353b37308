"""Thirty-two clients for a minute, a third of whose requests are broken off: does anything leak, is any answer wrong?

    python experiments/serve_throughput/leaving.py

Greedy answers are compared with those to the same question asked alone, which tests compare with `predict`. Memory is
looked at after a first part of the time, when all buffers have been made, and at the end.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import torch
from run import started

from lit_sft.checkpoint.opening import find_family
from lit_sft.checkpoint.tiny import demo_texts
from lit_sft.families._base import TinySize

SIZE = TinySize(hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, vocab_size=1400, context_length=512)
NUM_TOKENS = 24
SHARE_BROKEN_OFF = 1 / 3
PATIENCE = 120.0
"""Seconds that a client waits for a piece."""


def body(text: str, *, streams: bool) -> bytes:
    asked = {"model": "model", "messages": [{"role": "user", "content": text}], "max_tokens": NUM_TOKENS}
    return json.dumps({**asked, "temperature": 0, "stream": streams}).encode()


def ask(url: str, text: str, num_lines: int | None = None) -> str | None:
    """The whole answer, or None if the connection is closed after some lines of the stream."""
    streams = num_lines is not None
    request = Request(f"{url}/v1/chat/completions", body(text, streams=streams), {"Content-Type": "application/json"})
    with urlopen(request, timeout=PATIENCE) as answer:
        if not streams:
            return str(json.load(answer)["choices"][0]["message"]["content"])
        said = ""
        for number, line in enumerate(answer):
            if number == num_lines:
                return None
            if line.startswith(b"data: {"):
                said += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
        return said


def state() -> dict[str, float]:
    gc.collect()
    process = psutil.Process()
    return {
        "MiB": process.memory_info().rss / 2**20,
        "threads": process.num_threads(),
        "open files": process.num_fds(),
    }


def main() -> None:
    """Print what was counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    texts = [text for text in demo_texts() if text.strip()][:20]
    counted: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        folder.mkdir()
        torch.manual_seed(0)
        find_family("baichuan-7b").write_tiny(folder, demo_texts(), SIZE)
        server, thread, url = started(folder, options.clients // 2)
        expected = {text: ask(url, text) for text in texts}  # each alone

        def client(number: int, until: float) -> None:
            drawn = random.Random(f"{number} {until}")
            while time.monotonic() < until:
                text = drawn.choice(texts)
                is_broken_off = drawn.random() < SHARE_BROKEN_OFF
                lines = drawn.randrange(2 * NUM_TOKENS) if is_broken_off else drawn.choice([None, 10**6])
                said = ask(url, text, lines)
                counted["broken off" if said is None else "right" if said == expected[text] else "wrong"] += 1

        def part(seconds: float) -> dict[str, float]:
            until = time.monotonic() + seconds
            with ThreadPoolExecutor(options.clients) as pool:
                for done in [pool.submit(client, number, until) for number in range(options.clients)]:
                    done.result()
            while json.load(urlopen(f"{url}/health"))["running"]:
                time.sleep(0.05)
            return state()

        before, after = part(options.seconds / 4), part(options.seconds)
        server.should_exit = True
        thread.join()
    print(", ".join(f"{name} {count}" for name, count in sorted(counted.items())))
    for name in before:
        print(f"{name}: {before[name]:.0f} -> {after[name]:.0f}")
    print(f"threads of Python at the end: {threading.active_count()}")


if __name__ == "__main__":
    main()
