"""Answers of the C++ program beside those of Python: text in, text out, for exported folders of all families.

make cpp
python experiments/cpp_parity/run.py --output /tmp/parity --prompts 50
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lit_sft import open_checkpoint
from lit_sft.checkpoint.opening import Checkpoint, find_family
from lit_sft.checkpoint.tiny import demo_texts
from lit_sft.configuration import build
from lit_sft.conversation import Conversation, Message
from lit_sft.export.check import Sample
from lit_sft.export.folder import Source, export_onnx
from lit_sft.families._base import TinySize
from lit_sft.generation.generate import Answer, generate_answers
from lit_sft.generation.strategies import Strategy

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"

MAX_NEW_TOKENS = 16

TINY = TinySize(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, vocab_size=1200, context_length=256)

STRATEGIES: list[dict[str, Any]] = [
    {"class_path": "Greedy"},
    {"class_path": "BeamSearch", "init_args": {"num_beams": 3, "length_penalty": 0.8}},
    {"class_path": "TopP", "init_args": {"top_p": 0.8, "temperature": 0.9, "seed": 3}},
    {"class_path": "TopK", "init_args": {"top_k": 20, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3}},
]


def conversations(number: int) -> list[list[Message]]:
    """Questions of one or two turns, short enough for the context of a tiny model."""
    chance = random.Random(0)
    texts = [text[: chance.randint(2, 12)].strip() or "?" for text in demo_texts()]
    found = []
    for index in range(number):
        asked = [Message("user", chance.choice(texts))]
        if index % 3 == 2:
            asked = [Message("user", chance.choice(texts)), Message("assistant", chance.choice(texts)), *asked]
        found.append(asked)
    return found


def exported(checkpoint: Checkpoint, folder: Path) -> Path:
    """The folder of a checkpoint, made unless it is there."""
    if not folder.is_dir():
        samples = [Sample(row, [-100] * len(row)) for row in prompts(checkpoint, conversations(2))]
        export_onnx(Source(checkpoint, samples), folder)
    return folder


def prompts(checkpoint: Checkpoint, asked: list[list[Message]]) -> list[list[int]]:
    """Ids of conversations."""
    tokenizer = checkpoint.load_tokenizer()
    return [checkpoint.prompt_format.encode_prompt(Conversation(messages), tokenizer) for messages in asked]


def by_python(checkpoint: Checkpoint, asked: list[list[Message]], strategy: Strategy) -> list[Answer]:
    """One after the other, so that no rounding depends on the batch."""
    model: Any = checkpoint.load_model(dtype=torch.float32)
    tokenizer = checkpoint.load_tokenizer()
    stop = checkpoint.prompt_format.stop_token_ids(tokenizer)
    return [
        answer
        for row in prompts(checkpoint, asked)
        for answer in generate_answers(
            model, tokenizer, [row], strategy, stop_token_ids=stop, context_length=checkpoint.context_length
        )
    ]


def by_program(binary: Path, folder: Path, asked: list[list[Message]], options: dict[str, Any]) -> list[dict[str, Any]]:
    """The same through the program, several at once."""
    lines = [{"messages": [{"role": each.role, "content": each.content} for each in messages]} for messages in asked]
    arguments = ["--strategy", options["class_path"], "--max_new_tokens", str(MAX_NEW_TOKENS)]
    for name, value in options.get("init_args", {}).items():
        arguments += [f"--{name}", str(value)]
    done = subprocess.run(
        [binary, "generate", "--model", folder, "--quiet", "--threads", "1", *arguments],
        input="".join(json.dumps(line) + "\n" for line in lines),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def compared(binary: Path, checkpoint: Checkpoint, folder: Path, number: int) -> Iterator[tuple[str, int]]:
    """Of each strategy how many answers are equal."""
    asked = conversations(number)
    for options in STRATEGIES:
        strategy = build("generation", Strategy, options)
        strategy.max_new_tokens = MAX_NEW_TOKENS
        expected = by_python(checkpoint, asked, strategy)
        found = by_program(binary, folder, asked, options)
        yield (
            options["class_path"],
            sum(
                (one["answer"], one["finish_reason"], one["answer_tokens"])
                == (other.text, other.finish_reason, other.num_tokens)
                for one, other in zip(found, expected, strict=True)
            ),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "build" / "cpp" / "lit-sft")
    parser.add_argument("--output", type=Path, help="where exported folders are, or are kept; else they are forgotten")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--only", nargs="*", help="names of folders below tests/golden, or native")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as forgotten:
        output = given.output or Path(forgotten)
        output.mkdir(parents=True, exist_ok=True)
        for name in given.only or [*sorted(path.parent.name for path in GOLDEN.glob("*/checkpoint")), "native"]:
            folder = GOLDEN / name / "checkpoint"
            if name == "native":
                folder = output / "native-checkpoint"
                if not folder.is_dir():
                    folder.mkdir()
                    find_family("native").write_tiny(folder, demo_texts(), TINY)
            checkpoint = open_checkpoint(folder)
            exported(checkpoint, output / name)
            for strategy, num_equal in compared(given.binary, checkpoint, output / name, given.prompts):
                print(f"{name:15} {strategy:12} {num_equal:4} of {given.prompts} equal", flush=True)


if __name__ == "__main__":
    main()
