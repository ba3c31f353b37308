"""How fast are rollouts, against plain `generate` of the same prompts?

Both sample from the same network at temperature 1, with as many answers in memory at once. The network is a Baichuan-7B
of random weights; of its tokens every 48th ends an answer, so that lengths differ as those of a policy do.
"""

import argparse
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from transformers import GenerationConfig

from lit_sft import Conversation, Message, open_checkpoint
from lit_sft.checkpoint.tiny import demo_texts
from lit_sft.families._base import TinySize
from lit_sft.families.baichuan.rotary import Baichuan7B
from lit_sft.generation.generate import pad_left
from lit_sft.generation.rollouts import RolloutSampler

SIZE = TinySize(hidden_size=256, intermediate_size=688, num_layers=4, num_heads=4, vocab_size=4000, context_length=1024)


def written_prompts(count: int, seed: int) -> list[str]:
    """Questions of the demo corpora, behind none to many sentences of them."""
    chance = random.Random(seed)
    sentences = [text for text in demo_texts() if 4 < len(text) < 60]
    found = []
    for _ in range(count):
        before = chance.choices(sentences, k=min(24, int(chance.paretovariate(0.8)) - 1))
        found.append("".join([*before, chance.choice(sentences)])[:400])
    return found


def plain(model: Any, prompts: list[list[int]], options: argparse.Namespace, stop: list[int]) -> int:
    """As it is written everywhere: each prompt K times, batches of one size in the order of the file; its tokens."""
    config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=options.max_new_tokens,
        eos_token_id=stop, pad_token_id=stop[0],
    )  # fmt: skip
    size = max(1, options.rows // options.answers)
    num_tokens = 0
    for start in range(0, len(prompts), size):
        repeated = [prompt for prompt in prompts[start : start + size] for _ in range(options.answers)]
        input_ids, mask = pad_left(repeated, stop[0])
        with torch.no_grad():
            found = model.generate(input_ids=input_ids, attention_mask=mask, generation_config=config)
        for ids in found[:, input_ids.shape[1] :].tolist():
            num_tokens += next((place for place, token in enumerate(ids, 1) if token in stop), len(ids))
    return num_tokens


def rollouts(model: Any, prompts: list[list[int]], options: argparse.Namespace, stop: list[int], number: int) -> int:
    """The same budget: what the largest batch of the other holds; the tokens of the answers."""
    budget = options.rows * (max(map(len, prompts)) + options.max_new_tokens)
    sampler = RolloutSampler(options.answers, options.max_new_tokens, token_budget=budget)
    answers = sampler.sample(model, prompts, numbers=range(len(prompts)), rollout=number, stop_token_ids=stop)
    return sum(answer.num_tokens for of_prompt in answers for answer in of_prompt)


def measure(options: argparse.Namespace) -> None:
    options.work.mkdir(parents=True, exist_ok=True)
    if not (options.work / "config.json").exists():
        torch.manual_seed(0)
        Baichuan7B.write_tiny(options.work, demo_texts(), SIZE)
    checkpoint = open_checkpoint(options.work)
    model, tokenizer = checkpoint.load_model(dtype=torch.float32), checkpoint.load_tokenizer()
    stop = list(range(7, model.get_input_embeddings().weight.shape[0], 48))
    asked = (Conversation([Message("user", text)]) for text in written_prompts(options.prompts, options.seed))
    prompts = [checkpoint.prompt_format.encode_prompt(conversation, tokenizer) for conversation in asked]
    lengths = sorted(map(len, prompts))
    print(f"{len(prompts)} prompts of {lengths[len(prompts) // 2]} tokens (median) to {lengths[-1]}", flush=True)
    print("| turn | generate tok/s | rollouts tok/s | ratio |\n|---|---|---|---|")
    ratios = []
    for turn in range(options.repetitions):
        began = time.process_time()
        theirs = plain(model, prompts, options, stop)
        between = time.process_time()
        ours = rollouts(model, prompts, options, stop, turn)
        ended = time.process_time()
        speeds = theirs / (between - began), ours / (ended - between)
        ratios.append(speeds[1] / speeds[0])
        print(f"| {turn + 1} | {speeds[0]:.0f} | {speeds[1]:.0f} | {ratios[-1]:.2f} |", flush=True)
    print(f"median of the ratios {statistics.median(ratios):.2f}; {ours} tokens of answers in the last turn")
    print(f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path("/tmp/rollout_throughput"))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--rows", type=int, default=32, help="answers in memory at once")
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    measure(parser.parse_args())
