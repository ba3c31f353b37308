"""Write the tables of docs/scale.md, in both languages, and the memory in the head of each configuration.

By the formulas of `check`:

    python experiments/scale/run.py

The text of the pages between the marks and the paragraph `# Memory: ` are replaced; a test compares both. Sizes are
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

from lit_sft.checkpoint.opening import released_family
from lit_sft.configuration import build
from lit_sft.families._base import Family
from lit_sft.preflight.memory import Memory, Plan, estimate, num_trained
from lit_sft.preflight.network import NetworkSize, measure_network
from lit_sft.preflight.plan import plan_of
from lit_sft.preflight.speed import H100, step_time
from lit_sft.tuning._base import Tuning
from lit_sft.tuning.full import Full
from lit_sft.tuning.lora import LoRA
from lit_sft.tuning.qlora import QLoRA

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / name for name in ("scale.md", "scale.zh-CN.md")]
CONFIGS = sorted(set((ROOT / "configs").glob("*_*.yaml")) - set((ROOT / "configs").glob("quickstart_*.yaml")))
CONTEXT = 1e9
"""Bytes that CUDA and its libraries take, at most."""


@cache
def released(name: str) -> tuple[Family, NetworkSize]:
    """A released model by the name of its folder, from its config.json alone."""
    kind = released_family(name)
    assert kind, f"no family says that it released {name}"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(kind.released[name]), encoding="utf-8")
        family = kind(Path(folder), kind.released[name])
        return family, measure_network(family)


def predictions() -> Iterator[str]:
    """Three sizes, three methods, three numbers of devices."""
    yield "| model | method | trained, M | GPUs | GB a GPU | fits 80 GB | s a micro-batch | tokens/s | limit |"
    yield "|---|---|---:|---:|---:|---|---:|---:|---|"
    methods = {"full": Full(), "lora": LoRA(dropout=0.05), "qlora": QLoRA(dropout=0.05)}
    for name in ("Baichuan-7B", "Baichuan-13B-Base", "moss-moon-003-base"):
        family, size = released(name)
        for method, tuning in methods.items():
            for devices in (1, 8, 64):
                plan = Plan(tuning.footprint(family.lora_targets), num_devices=devices, update_copies="all")
                plan = replace(plan, sharding="fsdp2" if devices > 1 else "none")
                memory, took = estimate(size, plan).total, step_time(size, plan)
                trained = num_trained(size, plan) / 1e6
                yield (
                    f"| {family.name} | {method} | {trained:,.0f} | {devices} | {memory / 1e9:.0f} | "
                    f"{'yes' if memory <= H100.memory else 'no'} | {took.total:.2f} | "
                    f"{devices * plan.tokens / took.total:,.0f} | {took.limit} |"
                )


def estimated(text: str) -> tuple[Memory, Memory]:
    """Of a configuration that ships, on one GPU and shared out over eight."""
    document = yaml.safe_load(text)
    model = document["model"]["init_args"]
    family, size = released(Path(model["checkpoint"]).name)
    tuning = build("tuning", Tuning, model["tuning"])
    plan = replace(plan_of(namespace(document), tuning, family, 1, is_gpu=True), sharding="none")
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
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    for file in CONFIGS:
        file.write_text(headed(file.read_text(encoding="utf-8")), encoding="utf-8")
