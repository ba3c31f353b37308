"""Tokenizers, prompts and streamed answers in C++ are those of Python, for every folder and prompt format."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from binaries import binary, run
from goldens import GOLDEN_MODELS, golden_checkpoint

from lit_sft.chat.stream import AnswerStream
from lit_sft.checkpoint.opening import Checkpoint, open_checkpoint
from lit_sft.checkpoint.tiny import demo_texts, write_tiny
from lit_sft.conversation import Conversation
from lit_sft.display import harmless
from lit_sft.errors import BadRecord
from lit_sft.export.text_proof import random_conversation, random_text
from lit_sft.export.text_side import write_text_side
from lit_sft.families._base import TinySize
from lit_sft.families.native.family import Native
from lit_sft.generation.generate import decode_answer

pytestmark = pytest.mark.slow  # the programs are built first

NAMES = [*GOLDEN_MODELS, "llama"]
NUM_TEXTS, NUM_CONVERSATIONS = (2_000, 500) if "LIT_SFT_SLOW" in os.environ else (400, 100)
"""Of each of ten folders, and of each of its prompt formats."""


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    binary()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    """A checkpoint by its name; the tiny Llama is made once."""
    llama = tmp_path_factory.mktemp("cpp") / "llama"
    size = TinySize(hidden_size=32, intermediate_size=32, num_layers=1, num_heads=2, vocab_size=400)
    write_tiny(llama, Native, demo_texts()[:200], size, seed=0)

    def checkpoint(name: str, prompt_format: str | None = None) -> Checkpoint:
        if name == "llama":
            return open_checkpoint(llama, "native", prompt_format)
        return golden_checkpoint(name, prompt_format=prompt_format)

    return checkpoint


@pytest.mark.parametrize("name", NAMES)
def test_ids_texts_and_prompts_are_those_of_python(
    name: str, opened: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    chance = random.Random(name)
    tokenizer = opened(name).load_tokenizer()
    for number, prompt_format in enumerate(opened(name).family.prompt_formats()):
        checkpoint, folder = opened(name, prompt_format), tmp_path / prompt_format
        folder.mkdir()
        write_text_side(checkpoint.family, tokenizer, folder, num_texts=10, num_conversations=10)
        if not number:
            texts = [random_text(chance) for _ in range(NUM_TEXTS)]
            rows = ids_are_equal(folder, tokenizer, texts)
            rows += [random_ids(chance, len(tokenizer)) for _ in range(NUM_TEXTS)]
            answers_are_equal(folder, checkpoint, tokenizer, rows)
        conversations = [random_conversation(chance) for _ in range(NUM_CONVERSATIONS)]
        prompts_are_equal(folder, checkpoint, tokenizer, conversations)


def ids_are_equal(folder: Path, tokenizer: Any, texts: list[str]) -> list[list[int]]:
    expected = [[int(index) for index in tokenizer.encode_text(text)] for text in texts]
    found = run("tokenize", folder, [{"text": text} for text in texts])
    assert {text: row["ids"] for text, row in zip(texts, found, strict=True)} == dict(zip(texts, expected, strict=True))
    return expected


def random_ids(chance: random.Random, size: int) -> list[int]:
    return [chance.randrange(size) for _ in range(chance.randint(1, 30))]


def answers_are_equal(folder: Path, checkpoint: Checkpoint, tokenizer: Any, rows: list[list[int]]) -> None:
    family = checkpoint.family
    found = run("decode", folder, [{"ids": row} for row in rows])
    for row, answer in zip(rows, found, strict=True):
        text = decode_answer(row, tokenizer)
        assert (answer["text"], answer["shown"]) == (text, family.postprocess_answer(text)), row
        if harmless(text) == text:  # the stream of a chat writes to a terminal
            assert answer["pieces"] == streamed(checkpoint, tokenizer, row), row


def streamed(checkpoint: Checkpoint, tokenizer: Any, row: list[int]) -> list[str]:
    import torch

    pieces = [""]
    family = checkpoint.family

    def write(piece: str) -> None:
        pieces[-1] += piece

    stream = AnswerStream(tokenizer, [], family.postprocess_answer, family.postprocess_lookback, write)
    stream.put(torch.tensor([[0]]))  # the prompt
    for index in row:
        stream.put(torch.tensor([index]))
        pieces.append("")
    stream.end()
    return pieces


def prompts_are_equal(folder: Path, checkpoint: Checkpoint, tokenizer: Any, conversations: list[Conversation]) -> None:
    keys = ("role", "content", "thoughts", "commands", "name")
    records = [{"messages": [{key: getattr(m, key) for key in keys} for m in c.messages]} for c in conversations]
    found = run("prompt", folder, records)
    for conversation, written in zip(conversations, found, strict=True):
        try:
            expected = [int(index) for index in checkpoint.prompt_format.encode_prompt(conversation, tokenizer)]
        except BadRecord:
            expected = None
        assert written.get("ids") == expected, (written, conversation)
        assert ("refused" in written) == (expected is None)
