"""Is `predict` faster than a plain loop, and does it survive being killed?

Both parts answer with the model of configs/quickstart.yaml, which is trained once: it ends its answers by itself.
"""

import argparse
import json
import logging
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from lightning import Trainer
from transformers import GenerationConfig

from lit_sft.__main__ import main
from lit_sft.callbacks.prediction_writer import PredictionWriter
from lit_sft.checkpoint.tiny import demo_texts
from lit_sft.corpora.belle import Belle
from lit_sft.data.sft import SFTData
from lit_sft.generation.generate import decode_answer, pad_left
from lit_sft.generation.strategies import Greedy
from lit_sft.stages.sft import SFT
from lit_sft.tuning.full import Full

REPOSITORY = Path(__file__).parents[2]
DEMO = REPOSITORY / "lit_sft" / "demo"
MAX_NEW_TOKENS = 64
IMPORTED = (
    "lit_sft.cli.fit",
    "peft",
    "bitsandbytes",
    "torch.utils.tensorboard",
    "transformers.models.llama.modeling_llama",
)


def in_a_fork(action: Callable[[], Any]) -> int:
    """Start something in a copy of this process, which has imported everything; its process id."""
    assert len(os.listdir("/proc/self/task")) == 1, "threads do not survive a fork"
    process = os.fork()
    if process == 0:
        code = 1
        try:
            code = action() or 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    return process


def finish(process: int) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code == 0, f"exit code {code}"


def train(work: Path) -> Path:
    """The tuned model in its original layout."""
    os.chdir(REPOSITORY)  # to which the paths of the configuration are relative
    model = work / "model"
    if not model.exists():
        finish(in_a_fork(lambda: main(["tiny", "--output", str(model)])))
    if not list(work.glob("runs/quickstart-*/model/config.json")):
        words = ["--model.init_args.checkpoint", str(model), "--runs", str(work / "runs"), "--samples.count", "0"]
        finish(in_a_fork(lambda: main(["fit", "--config", "configs/quickstart.yaml", *words])))
    return next(work.glob("runs/quickstart-*/model"))


def write_prompts(file: Path, count: int, seed: int) -> Path:
    """Questions of the demo corpora, behind none to many sentences of them: a few are very long."""
    chance = random.Random(seed)
    sentences = [text for text in demo_texts() if 4 < len(text) < 60]
    questions = [text for text in sentences if text.endswith(("？", "?"))] or sentences
    prompts = []
    for _ in range(count):
        before = chance.choices(sentences, k=min(24, int(chance.paretovariate(0.8)) - 1))
        prompts.append("".join([*before, chance.choice(questions)]).replace("\n", " ")[:400])
    file.write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
    return file


def plain_loop(stage: SFT, prompts: list[list[int]], batch_size: int) -> list[str]:
    """As it is written everywhere: batches of the same size in the order of the file."""
    (stop,) = stage.checkpoint.prompt_format.stop_token_ids(stage.tokenizer)
    config = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS, do_sample=False, eos_token_id=stop, pad_token_id=stop)
    answers = []
    for start in range(0, len(prompts), batch_size):
        input_ids, mask = pad_left(prompts[start : start + batch_size], stop)
        with torch.no_grad():
            found = stage.causal_lm.generate(input_ids=input_ids, attention_mask=mask, generation_config=config)
        for ids in found[:, input_ids.shape[1] :].tolist():
            answers.append(decode_answer(ids[: ids.index(stop)] if stop in ids else ids, stage.tokenizer))
    return answers


def predicted(stage: SFT, data: SFTData, file: Path, budget: int) -> list[str]:
    """What `predict` does but for loading the model: plan, answer, write."""
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, inference_mode=False,
        callbacks=[PredictionWriter(str(file), budget)],
    )  # fmt: skip
    trainer.predict(stage, datamodule=data, return_predictions=False)
    return [json.loads(line)["answer"] for line in file.read_text(encoding="utf-8").splitlines()]


def measure_speed(work: Path, count: int, sizes: list[int], repetitions: int, seed: int) -> None:
    model = train(work)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    stage = SFT(checkpoint=str(model), tuning=Full(), generation=Greedy(max_new_tokens=MAX_NEW_TOKENS))
    prompts = write_prompts(work / "prompts.txt", count, seed)
    corpora = [Belle(str(DEMO / "belle_train.json"))]
    data = SFTData(stage.checkpoint, corpora, max_length=256, prompts=str(prompts), cache=str(work / "cache"))
    data.setup("predict")
    stage.configure_model()
    stage.eval()
    ids = [prompt.input_ids for prompt in data.predict_prompts]
    lengths = sorted(map(len, ids))
    print(f"{count} prompts, tokens: median {lengths[count // 2]}, {lengths[-1]} at most, {sum(lengths)} in all")
    print("| batch size | token budget | loop CPU s | predict CPU s | loop tok/s | predict tok/s | speed-up | spread |")
    print("|---" * 8 + "|")
    for size in sizes:
        budget = size * (lengths[-1] + MAX_NEW_TOKENS)  # what the largest batch of the loop holds
        seconds: dict[str, list[float]] = {"loop": [], "predict": []}
        for _ in range(repetitions):
            began = time.process_time()
            expected = plain_loop(stage, ids, size)
            between = time.process_time()
            answers = predicted(stage, data, work / "answers.jsonl", budget)
            seconds["loop"].append(between - began)
            seconds["predict"].append(time.process_time() - between)
            assert answers == expected
        rows = [json.loads(line) for line in (work / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
        tokens = sum(row["answer_tokens"] for row in rows)
        loop, predict = (statistics.median(values) for values in seconds.values())
        ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
        speeds = f"{tokens / loop:.0f} | {tokens / predict:.0f}"
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(
            f"| {size} | {budget} | {loop:.1f} | {predict:.1f} | {speeds} | {loop / predict:.2f} | {spread} |",
            flush=True,
        )
    stopped = sum(row["finish_reason"] == "stop" for row in rows)
    print(f"{tokens} tokens of answers, {stopped} of which ended by themselves")


def measure_kills(work: Path, count: int, kills: int, seed: int) -> None:
    model, chance = train(work), random.Random(seed)
    prompts = write_prompts(work / "many.txt", count, seed)
    greedy = {"class_path": "Greedy", "init_args": {"max_new_tokens": 16}}
    top_p = {"class_path": "TopP", "init_args": {"max_new_tokens": 16, "temperature": 0.8}}
    words = ["predict", "--config", "configs/quickstart.yaml", "--model.init_args.checkpoint", str(model)]
    words += ["--model.init_args.generation", json.dumps([greedy, top_p]), "--data.init_args.prompts", str(prompts)]

    def start(name: str) -> int:
        return in_a_fork(lambda: main([*words, "--predictions.path", str(work / name)]))

    for name in ("whole.jsonl", "killed.jsonl", "killed.jsonl.partial"):
        (work / name).unlink(missing_ok=True)
    began = time.monotonic()
    finish(start("whole.jsonl"))
    whole = time.monotonic() - began
    print(f"{count} prompts in two ways, uninterrupted: {whole:.1f} s")
    print("| kill | after s | prompts answered by then | torn line |")
    print("|---" * 4 + "|")
    partial = work / "killed.jsonl.partial"
    answered = [0]
    for kill in range(1, kills + 1):
        process, seconds = start("killed.jsonl"), chance.uniform(0, 1.6 * whole / kills)
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        assert code == -signal.SIGKILL, f"exit code {code}: it had finished"
        lines = partial.read_bytes().split(b"\n") if partial.exists() else [b"", b""]
        answered.append(max(0, len(lines) - 2))
        print(f"| {kill} | {seconds:.1f} | {answered[-1]} | {'yes' if lines[-1] else 'no'} |", flush=True)
    finish(start("killed.jsonl"))
    assert all(before <= after for before, after in pairwise(answered)), "answers were lost"
    rows = [json.loads(line) for line in (work / "killed.jsonl").read_text(encoding="utf-8").splitlines()]
    sources = [row["source"] for row in rows]
    assert sources == [f"{prompts}:{number}" for number in range(1, count + 1) for _ in range(2)]
    same = (work / "killed.jsonl").read_bytes() == (work / "whole.jsonl").read_bytes()
    print(f"{len(rows)} rows, each prompt once in each way and in order; equal to the uninterrupted run: {same}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path("/tmp/predict_throughput"))
    parser.add_argument("--kill", action="store_true", help="kill it instead of measuring its speed")
    parser.add_argument("--prompts", type=int, help="500, or 2,000 to kill it")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", type=int, default=[4, 8, 16])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for module in IMPORTED:
        import_module(module)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.kill:
        measure_kills(options.work, options.prompts or 2000, options.kills, options.seed)
    else:
        measure_speed(options.work, options.prompts or 500, options.sizes, options.repetitions, options.seed)
