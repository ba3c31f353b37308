"""Records what Python decodes, for the unit tests of the C++ strategies: `python tests/cpp/record_decoding.py`.

The network is a table: the logits behind a token depend on that token alone, so that C++ needs no runtime to repeat it.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from lit_sft.configuration import build
from lit_sft.generation.generate import generate_ids
from lit_sft.generation.strategies import Strategy

TARGET = Path(__file__).parents[1] / "golden" / "decoding" / "decoding.json"
VOCABULARY = 24
ROOM = 20
STOPS = [[3], [3, 5, 11]]
PROMPTS = [[1, 7, 2], [20, 9, 9, 4, 20, 9], [13]]
STRATEGIES: list[dict[str, Any]] = [
    {"class_path": "Greedy"},
    {"class_path": "Greedy", "init_args": {"repetition_penalty": 1.3}},
    {"class_path": "Greedy", "init_args": {"no_repeat_ngram_size": 2}},
    {"class_path": "Greedy", "init_args": {"repetition_penalty": 0.9, "no_repeat_ngram_size": 1}},
    {"class_path": "BeamSearch", "init_args": {"num_beams": 3}},
    {"class_path": "BeamSearch", "init_args": {"num_beams": 4, "length_penalty": 2.0}},
    {"class_path": "BeamSearch", "init_args": {"num_beams": 2, "length_penalty": 0.0}},
    {"class_path": "BeamSearch", "init_args": {"num_beams": 5, "length_penalty": -0.5, "repetition_penalty": 1.2}},
    {"class_path": "BeamSearch", "init_args": {"num_beams": 3, "no_repeat_ngram_size": 2, "length_penalty": 0.5}},
    {"class_path": "TopK", "init_args": {"top_k": 5, "seed": 1}},
    {"class_path": "TopK", "init_args": {"top_k": 50, "temperature": 1.5, "seed": -3}},
    {"class_path": "TopK", "init_args": {"top_k": 1}},
    {"class_path": "TopP", "init_args": {"top_p": 0.8, "temperature": 0.7, "seed": 12345678901}},
    {"class_path": "TopP", "init_args": {"top_p": 1.0, "repetition_penalty": 1.1}},
    {"class_path": "TopP", "init_args": {"top_p": 0.3, "no_repeat_ngram_size": 3, "seed": 7}},
    {"class_path": "TopP", "init_args": {"top_p": 0.000001, "seed": 7}},
]
SEEDS = ["", "0 [1, 2, 3]", "贝币", "b" * 111, "b" * 112, "x" * 3000]


class Table(PreTrainedModel, GenerationMixin):
    """Logits by the last token."""

    config_class = PretrainedConfig

    def __init__(self, rows: torch.Tensor) -> None:
        options: dict[str, Any] = {"vocab_size": len(rows), "is_encoder_decoder": False, "num_hidden_layers": 1}
        super().__init__(PretrainedConfig(**options))
        self.rows = torch.nn.Parameter(rows)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self.rows[input_ids])


def recorded() -> dict[str, Any]:
    """Tables, answers and streams of random numbers."""
    rows = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2
    rows[:, STOPS[0]] -= 1.5  # answers of some length
    table = Table(rows)
    cases = [
        {"strategy": options, "stop": stop, "prompt": prompt, "ids": _cut(table, prompt, options, stop)}
        for options in STRATEGIES
        for stop in STOPS
        for prompt in PROMPTS
    ]
    return {"room": ROOM, "table": rows.tolist(), "cases": cases, "streams": [_stream(seed) for seed in SEEDS]}


def _cut(table: Table, prompt: list[int], options: dict[str, Any], stop: list[int]) -> list[int]:
    strategy = build("generation", Strategy, options)
    (ids,) = generate_ids(table, [prompt], strategy, stop=stop, room=ROOM)
    end = next((index + 1 for index, token in enumerate(ids) if token in stop), len(ids))
    return ids[:end]


def _stream(seed: str) -> dict[str, Any]:
    """The first number, and that behind the first refill of the generator."""
    generator = Random(seed)
    numbers = [generator.random() for _ in range(700)]
    return {"seed": seed, "first": numbers[0], "last": numbers[-1]}


if __name__ == "__main__":
    TARGET.write_text(json.dumps(recorded(), ensure_ascii=False) + "\n", encoding="utf-8")
