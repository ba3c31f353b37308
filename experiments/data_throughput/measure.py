"""One measurement in a process of its own: `measure.py NAME '{"argument": value}'` prints one JSON object."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
from inputs import CHECKPOINTS, open_data


def limit(files: dict[str, str], checkpoint: str, folder: str, repetitions: int) -> dict[str, list[dict[str, float]]]:
    """CPU seconds of two tokenizers alone, and of each step of ours, in turns, in one process without workers.

    CPU time, because others who use the machine lengthen the wall time only.
    """
    from sentencepiece import SentencePieceProcessor

    model = str(Path(checkpoint) / CHECKPOINTS[Path(checkpoint).name][1])
    processor = SentencePieceProcessor(model_file=model)
    rust = rust_tokenizer(model, folder)._tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread, as all others here
    runs: dict[str, list[dict[str, float]]] = {layout: [] for layout in files}
    for _ in range(repetitions):
        for layout, file in files.items():
            with tempfile.TemporaryDirectory(dir=folder) as cache:
                runs[layout].append(_steps(layout, file, checkpoint, cache, processor, rust))
    return runs


def _steps(layout: str, file: str, checkpoint: str, cache: str, processor: Any, rust: Any) -> dict[str, float]:
    data = open_data(layout, file, checkpoint, cache)
    times = {"scan": _cpu_seconds(lambda: data.scanned)}
    (corpus,) = data.scanned
    conversations = (corpus.record(number).conversations()[0] for number in corpus.scan.good.tolist())
    texts = [text for talk in conversations for said in talk.messages for text in said[1:] if text]
    times["sentencepiece"] = _cpu_seconds(lambda: processor.encode(texts, num_threads=1))
    times["encode_batch"] = _cpu_seconds(lambda: rust.encode_batch(texts, add_special_tokens=False))
    epoch = data.mixture.epoch(0)
    encoder = data.prepared.encoder
    times["encode"] = _cpu_seconds(lambda: encoder.need(epoch))
    times["pack"] = _cpu_seconds(lambda: sum(1 for _ in data.train_dataloader()))
    return {**times, "records": len(epoch[0]), "bytes": Path(file).stat().st_size}


def rust_tokenizer(model: str, folder: str) -> Any:
    """The tokenizer that transformers makes of a sentencepiece model, on the Rust library `tokenizers`."""
    from transformers import LlamaTokenizer

    alone = Path(folder) / "rust"
    alone.mkdir(exist_ok=True)
    shutil.copyfile(model, alone / "tokenizer.model")
    return LlamaTokenizer.from_pretrained(alone)


def first_batch(file: str, checkpoint: str, cache: str, num_workers: int, num_batches: int, rows: int) -> Any:
    """Seconds to the first batch; what the processes hold after `num_batches` of them."""
    started = time.perf_counter()
    import lit_sft.data.sft
    import lit_sft.families._base

    lit_sft.families._base.families()
    imported = time.perf_counter()
    data = open_data("belle", file, checkpoint, cache, num_workers=num_workers, micro_batch_size=rows)
    data.setup("fit")
    batches = iter(data.train_dataloader())
    next(batches)
    first = time.perf_counter()
    num_seen = 1 + sum(1 for _ in islice(batches, num_batches - 1))
    return {"imports": imported - started, "first_batch": first - imported, "batches": num_seen, **_memory()}


def position(file: str, checkpoint: str, cache: str, num_workers: int) -> dict[str, Any]:
    """The state of a run that stands in the last window of its first epoch, which is encoded."""
    from lit_sft.data.order import WINDOW, Position

    data = open_data("belle", file, checkpoint, cache, num_workers=num_workers)
    corpus_of, records = data.mixture.epoch(0)
    window = (len(records) - 1) // WINDOW
    data.prepared.encoder.need((corpus_of[window * WINDOW :], records[window * WINDOW :]))
    return {**asdict(Position(epoch=0, num_batches=1, window=window, offset=1)), "data": data._identity()}


def resume(file: str, checkpoint: str, cache: str, num_workers: int, state: dict[str, Any]) -> dict[str, float]:
    """Seconds from a new data module, and from its state, to the next batch."""
    data = open_data("belle", file, checkpoint, cache, num_workers=num_workers)
    started = time.perf_counter()
    data.setup("fit")
    loaded = time.perf_counter()
    data.load_state_dict(state)
    next(iter(data.train_dataloader()))
    return {"set_up": loaded - started, "next_batch": time.perf_counter() - loaded}


def ours(file: str, checkpoint: str, cache: str, num_workers: int) -> dict[str, float]:
    """Seconds to the first batch and through the first epoch."""
    data = open_data("belle", file, checkpoint, cache, num_workers=num_workers)

    def loader() -> Any:
        data.setup("fit")
        return data.train_dataloader()

    return _first_and_all(loader)


def usual(file: str, checkpoint: str, cache: str, num_workers: int, tokenizer_of: str) -> dict[str, float]:
    """The same with `datasets` and a padding collator, written as most training scripts are.

    The tokenizer is that of `transformers`, or `ours`. The template is that of ChatGLM2-6B; prompts and answers of a
    thousand records at a time go through the batch call of the tokenizer; the labels of a prompt are masked by its
    length.
    """
    import torch
    from datasets import load_dataset
    from torch.nn.utils.rnn import pad_sequence
    from torch.utils.data import DataLoader

    from lit_sft import open_checkpoint

    if tokenizer_of == "ours":
        tokenizer: Any = open_checkpoint(checkpoint).load_tokenizer()
    else:
        tokenizer = rust_tokenizer(str(Path(checkpoint) / "tokenizer.model"), cache)
        tokenizer.pad_token_id = tokenizer.unk_token_id

    def tokenize(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        questions = [f"{said}\n{more}".strip() for said, more in zip(rows["instruction"], rows["input"], strict=True)]
        prompts = tokenizer([f"[Round 1]\n\n问：{question}\n\n答：" for question in questions])["input_ids"]
        answers = tokenizer([answer.strip() for answer in rows["output"]], add_special_tokens=False)["input_ids"]
        end = tokenizer.eos_token_id
        pairs = [(prompt, [*answer, end]) for prompt, answer in zip(prompts, answers, strict=True)]
        return {
            "input_ids": [(prompt + answer)[:2048] for prompt, answer in pairs],
            "labels": [([-100] * len(prompt) + answer)[:2048] for prompt, answer in pairs],
        }

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        return {
            name: pad_sequence([torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=fill)
            for name, fill in (("input_ids", tokenizer.pad_token_id), ("labels", -100))
        }

    def loader() -> Any:
        raw = load_dataset("json", data_files=file, split="train", cache_dir=cache)
        rows = raw.map(tokenize, batched=True, num_proc=num_workers, remove_columns=raw.column_names)
        return DataLoader(rows, batch_size=32, shuffle=True, collate_fn=collate, num_workers=num_workers)

    return _first_and_all(loader)


def _first_and_all(loader: Callable[[], Any]) -> dict[str, float]:
    started = time.perf_counter()
    batches = iter(loader())
    next(batches)
    first = time.perf_counter() - started
    num_batches = 1 + sum(1 for _ in batches)
    return {"first_batch": first, "epoch": time.perf_counter() - started, "batches": num_batches}


def _cpu_seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _memory() -> dict[str, float]:
    """Bytes of this process, and of it and its workers, pages that several share counted once."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    shares = []
    for process in processes:
        with suppress(psutil.Error):  # an encoding process may end meanwhile
            shares.append(process.memory_full_info().pss)
    return {"rss": processes[0].memory_info().rss, "pss": sum(shares), "processes": len(shares)}


MEASUREMENTS = (limit, first_batch, position, resume, ours, usual)

if __name__ == "__main__":
    named = {function.__name__: function for function in MEASUREMENTS}
    print(json.dumps(named[sys.argv[1]](**json.loads(sys.argv[2]))), flush=True)
    # What still encodes in the background would compete with the next measurement.
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(0)
