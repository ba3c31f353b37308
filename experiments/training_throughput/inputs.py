"""What all contestants train: one random checkpoint, and conversations whose lengths are spread as BELLE's are.

A word of the texts is a token, so that the lengths in tokens are exactly those drawn, and the ids are known without
asking anybody's tokenizer.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

VOCABULARY = 64_000
"""Rows of the output head, as Baichuan-7B has: it decides about the time of a small model."""

PAD, EOS, UNKNOWN, HUMAN, ASSISTANT, FIRST_WORD = range(6)
SPECIAL = ["<pad>", "</s>", "<unk>", "Human:", "Assistant:"]

LENGTHS = ((40, 0.8), (100, 0.9))
"""Of prompt and reply: median in words, and standard deviation of the logarithm."""

FOLLOWED = 0.5
"""How often a word is the one that always follows the word before: what there is to learn beside frequencies."""

IGNORED = -100


@dataclass(frozen=True)
class Size:
    """A Llama and how it is trained; `row_length` tokens are the longest conversation, `num_rows` such rows a step."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    dtype: str
    learning_rate: float
    row_length: int = 1024
    num_rows: int = 2

    @property
    def budget(self) -> int:
        """Tokens of a step at most, padding included."""
        return self.row_length * self.num_rows


SIZES = {
    "20m": Size(layers=6, hidden=144, intermediate=384, heads=4, dtype="float32", learning_rate=1e-3),
    "7b": Size(layers=32, hidden=4096, intermediate=11008, heads=32, dtype="bfloat16", learning_rate=2e-5, num_rows=4),
}


class Example(NamedTuple):
    """Ids of a conversation, and how many of them are the prompt, which carries no loss."""

    input_ids: list[int]
    num_prompt: int

    @property
    def labels(self) -> list[int]:
        """Not shifted."""
        return [IGNORED] * self.num_prompt + self.input_ids[self.num_prompt :]


def write_inputs(folder: Path, size: Size, num_steps: int, seed: int, num_held_out: int = 64) -> dict[str, Any]:
    """The checkpoint and the texts, made once for all contestants; what was made, in numbers."""
    rng = np.random.default_rng(seed)
    mean = sum(median * math.exp(spread**2 / 2) for median, spread in LENGTHS) + 3
    # Enough for similar lengths to be found, and more than anybody reads.
    num_examples = max(2000, math.ceil(1.5 * num_steps * size.budget / mean))
    examples = _draw(rng, num_examples + num_held_out, size.row_length)
    train, held_out = examples[num_held_out:], examples[:num_held_out]
    with (folder / "conversations.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"messages": _messages(example)}) + "\n" for example in train)
    for name, part in (("train", train), ("held_out", held_out)):
        (folder / f"{name}.json").write_text(json.dumps(part))
    num_parameters = _write_checkpoint(folder / "model", size, seed)
    lengths = [len(example.input_ids) for example in train]
    prompts = [example.num_prompt for example in train]
    return {
        "parameters": num_parameters,
        "conversations": len(train),
        "median prompt": float(np.median(prompts)),
        "median reply": float(np.median(np.subtract(lengths, prompts))),
        "mean tokens": float(np.mean(lengths)),
        "longest": max(lengths),
        "supervised share": 1 - sum(prompts) / sum(lengths),
    }


def read_examples(folder: Path, name: str) -> list[Example]:
    """`train` or `held_out`."""
    return [Example(*pair) for pair in json.loads((folder / f"{name}.json").read_text())]


def _draw(rng: np.random.Generator, count: int, longest: int) -> list[Example]:
    """Conversations of one round, none longer than a row."""
    num_words = VOCABULARY - FIRST_WORD
    # Zipf's law, to the last word of the vocabulary.
    up_to = np.cumsum(1 / np.arange(1, num_words + 1))
    follower = rng.integers(0, 500, num_words).tolist()
    examples = []
    while len(examples) < count:
        num_asked, num_answered = (max(1, round(rng.lognormal(math.log(median), spread))) for median, spread in LENGTHS)
        total = num_asked + num_answered + 3  # HUMAN, ASSISTANT and EOS
        if total > longest:
            continue
        words = np.searchsorted(up_to, rng.uniform(0, up_to[-1], num_asked + num_answered)).tolist()
        is_followed = (rng.random(len(words)) < FOLLOWED).tolist()
        for place in range(1, len(words)):
            if is_followed[place]:
                words[place] = follower[words[place - 1]]
        ids = [FIRST_WORD + word for word in words]
        examples.append(Example([HUMAN, *ids[:num_asked], ASSISTANT, *ids[num_asked:], EOS], num_asked + 2))
    return examples


def _messages(example: Example) -> list[dict[str, str]]:
    """What a corpus would hold: the prompt format sets the words that mark who speaks."""
    asked, answered = example.input_ids[1 : example.num_prompt - 1], example.input_ids[example.num_prompt : -1]
    return [
        {"role": role, "content": " ".join(f"w{word}" for word in ids)}
        for role, ids in (("user", asked), ("assistant", answered))
    ]


def _write_checkpoint(folder: Path, size: Size, seed: int) -> int:
    """A Llama of random weights in the layout of transformers; how many."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=size.row_length,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    torch.manual_seed(seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # it draws seven billion numbers in a second
        model = LlamaForCausalLM(config).to(getattr(torch, size.dtype))
    model.save_pretrained(folder)
    _write_tokenizer(folder, size)
    return sum(parameter.numel() for parameter in model.parameters())


def _write_tokenizer(folder: Path, size: Size) -> None:
    """A token for each word between blanks."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [*SPECIAL, *(f"w{word}" for word in range(FIRST_WORD, VOCABULARY))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": size.row_length,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    arguments |= {"folder": Path(arguments["folder"]), "size": SIZES[arguments["size"]]}
    print(json.dumps(write_inputs(**arguments)))
