"""Write the tables of docs/scale.md, and the memory in the head of each configuration, by the formulas of `check`.

    python experiments/scale/run.py

The text of the page between the marks and the paragraph `# Memory: ` are replaced; a test compares both. Sizes are
those of the released models.
"""

from __future__ import annotations

import json
import re
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import yaml

from lit_sft.checkpoint.opening import find_family
from lit_sft.families._base import Family
from lit_sft.preflight.memory import Memory, Method, Plan, estimate, num_trained
from lit_sft.preflight.network import NetworkSize, measure_network
from lit_sft.preflight.plan import plan_of
from lit_sft.preflight.speed import H100, step_time

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "scale.md"
CONFIGS = sorted((ROOT / "configs").glob("*_*.yaml"))
CONTEXT = 1e9
"""Bytes that CUDA and its libraries take, at most."""

LLAMA = {"model_type": "baichuan", "hidden_act": "silu", "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# What decides about the size in the released config.json of each model.
RELEASED = {
    "baichuan-7b": {
        **LLAMA, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008,
        "vocab_size": 64000, "max_position_embeddings": 4096,
    },
    "baichuan-13b": {
        **LLAMA, "hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40, "intermediate_size": 13696,
        "vocab_size": 64000, "model_max_length": 4096,
    },
    "moss": {
        "model_type": "moss", "n_embd": 6144, "n_layer": 34, "n_head": 24, "n_inner": None, "rotary_dim": 64,
        "n_positions": 2048, "n_ctx": 2048, "vocab_size": 107008, "tie_word_embeddings": False,
    },
    "chatglm-6b": {
        "model_type": "chatglm", "hidden_size": 4096, "inner_hidden_size": 16384, "num_layers": 28,
        "num_attention_heads": 32, "max_sequence_length": 2048, "vocab_size": 130528, "bos_token_id": 130004,
        "eos_token_id": 130005, "mask_token_id": 130000, "gmask_token_id": 130001, "pad_token_id": 3,
    },
    "chatglm2-6b": {
        "model_type": "chatglm", "hidden_size": 4096, "ffn_hidden_size": 13696, "num_layers": 28,
        "num_attention_heads": 32, "kv_channels": 128, "multi_query_attention": True, "multi_query_group_num": 2,
        "padded_vocab_size": 65024, "seq_length": 32768, "add_qkv_bias": True, "add_bias_linear": False,
        "rmsnorm": True, "original_rope": True, "post_layer_norm": True, "layernorm_epsilon": 1e-5,
        "tie_word_embeddings": False, "eos_token_id": 2, "pad_token_id": 0,
    },
}  # fmt: skip
CONFIGURED = {
    "Baichuan-7B": "baichuan-7b",
    "Baichuan-13B-Base": "baichuan-13b",
    "moss-moon-003-base": "moss",
    "chatglm-6b": "chatglm-6b",
    "chatglm2-6b": "chatglm2-6b",
}


@cache
def released(name: str) -> tuple[Family, NetworkSize]:
    """A released model, from its config.json alone."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(RELEASED[name]), encoding="utf-8")
        family = find_family(name)(Path(folder), RELEASED[name])
        return family, measure_network(family)


def predictions() -> Iterator[str]:
    """Three sizes, three methods, three numbers of devices."""
    yield "| model | method | trained, M | GPUs | GB a GPU | fits 80 GB | s a micro-batch | tokens/s | limit |"
    yield "|---|---|---:|---:|---:|---|---:|---:|---|"
    methods: tuple[Method, ...] = ("full", "lora", "qlora")
    for name in ("baichuan-7b", "baichuan-13b", "moss"):
        family, size = released(name)
        for method in methods:
            for devices in (1, 8, 64):
                plan = Plan(method, targets=family.lora_targets, dropout=0.05, num_devices=devices, update_copies="all")
                plan = replace(plan, sharding="fsdp2" if devices > 1 else "none")
                memory, took = estimate(size, plan).total, step_time(size, plan)
                yield (
                    f"| {name} | {method} | {num_trained(size, plan) / 1e6:,.0f} | {devices} | {memory / 1e9:.0f} | "
                    f"{'yes' if memory <= H100.memory else 'no'} | {took.total:.2f} | "
                    f"{devices * plan.tokens / took.total:,.0f} | {took.limit} |"
                )


def estimated(text: str) -> tuple[Memory, Memory]:
    """Of a configuration that ships, on one GPU and shared out over eight."""
    document = yaml.safe_load(text)
    family, size = released(CONFIGURED[Path(document["model"]["init_args"]["checkpoint"]).name])
    plan = replace(plan_of(namespace(document), family, 1, is_gpu=True), sharding="none")
    return estimate(size, plan), estimate(size, replace(plan, sharding="fsdp2", num_devices=8))


def configurations() -> Iterator[str]:
    """Every configuration that ships."""
    yield "| configuration | weights | optimizer | gradients | the rest at the peak | one GPU, GB | each of 8, fsdp2 |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for file in CONFIGS:
        found, shared = estimated(file.read_text(encoding="utf-8"))
        parts = (found.weights, found.optimizer, found.parts["gradients"])
        numbers = [*parts, found.total - sum(parts), found.total, shared.total]
        yield f"| {file.name} | " + " | ".join(f"{number / 1e9:.1f}" for number in numbers) + " |"


def headed(text: str) -> str:
    """The configuration with its memory in its head."""
    found, shared = estimated(text)
    parts = {"weights": found.weights, "optimizer": found.optimizer, "gradients": found.parts["gradients"]}
    listed = ", ".join(f"{value / 1e9:.1f} {name}" for name, value in parts.items())
    rest = (found.total - sum(parts.values())) / 1e9
    said = f"Memory: {found.total / 1e9:.1f} GB ({listed}, {rest:.1f} the rest), by docs/scale.md: "
    said += f"one {gpu} GB GPU." if (gpu := smallest_gpu(found)) else (
        f"no single GPU; configs/overlays/fsdp2.yaml on 8: {shared.total / 1e9:.1f} GB each, "
        f"{smallest_gpu(shared)} GB GPUs."
    )  # fmt: skip
    paragraph = textwrap.fill(said, 115, initial_indent="# ", subsequent_indent="# ")
    return re.sub(r"# Memory: .*?\.(?=\n)", lambda _: paragraph, text, count=1, flags=re.DOTALL)


def smallest_gpu(found: Memory) -> int | None:
    """GB of the smallest of the common ones that holds it, with what the CUDA context takes."""
    return next((size for size in (16, 24, 40, 48, 80, 141) if found.total + CONTEXT <= size * 1e9), None)


class _Node(SimpleNamespace):
    """Attributes and `get`, as a parsed configuration has them; an absent key is None."""

    def get(self, name: str, default: object = None) -> object:
        return vars(self).get(name, default)

    def __getattr__(self, name: str) -> None:
        return None


def namespace(value: object) -> object:
    """A YAML document as `plan_of` reads it."""
    return _Node(**{key: namespace(item) for key, item in value.items()}) if isinstance(value, dict) else value


def filled(page: str) -> str:
    """The page with its tables."""
    for name, rows in (("predictions", predictions()), ("configurations", configurations())):
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        table = "\n".join([begin, *rows, end])
        page = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: table, page, flags=re.DOTALL)  # noqa: B023
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    for file in CONFIGS:
        file.write_text(headed(file.read_text(encoding="utf-8")), encoding="utf-8")
