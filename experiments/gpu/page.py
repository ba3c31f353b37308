"""Write docs/gpu.md and docs/gpu.zh-CN.md from the results of `run.py`; without any they say what was not measured.

python experiments/gpu/page.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plan import PARTS

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
RESULTS = HERE / "results.json"

ESTIMATE = {"estimate_over_peak": "0.9 to 1.1"}
GOALS = {
    "7b-lora": {"tokens_per_second": "≥ 14,000", "flops_utilization": "≥ 0.4"} | ESTIMATE,
    "7b-qlora": {"tokens_per_second": "≥ 9,000"} | ESTIMATE,
    "13b-lora": {"tokens_per_second": "≥ 7,400"} | ESTIMATE,
    "16b-qlora": ESTIMATE,
    "7b-full-8bit": ESTIMATE,
    "trl": {"our_tokens_over_theirs": "≥ 1.2", "our_memory_over_theirs": "≤ 0.8"},
}
"""On one H200."""

TEXTS = {
    "en": {
        "file": "gpu.md",
        "head": """# On a GPU

[中文](gpu.zh-CN.md)

What this project does on a GPU is known from formulas and from a CPU until it was measured. `experiments/gpu/run.py`
measures it: every question is a part with a time limit of its own, the most important first, and nothing is
downloaded, for weights are random and made on the device.

```bash
python experiments/gpu/run.py --plan            # what would run, and for how long at most
python experiments/gpu/run.py --minutes 12      # on a GPU; writes experiments/gpu/results.json after each part
python experiments/gpu/page.py                  # this page again
python experiments/gpu/run.py --size tiny       # small networks, on a CPU: does the script work?
```

Defaults that rest on it: rows are packed on a GPU (`packing`, parts `7b-lora` and `7b-lora-grouped`), the attention
kernel for packed rows (part `attention`), our own head and loss (part `head`), blocks that are not compiled (part
`7b-lora-compiled`). The estimates of `check` and of [memory and time](scale.md) come from formulas until
parts `7b-lora` to `7b-full-8bit` were measured.
""",
        "nothing": "Not yet measured: no results.json is there.",
        "machine": "Measured on {date}: {device}, CUDA {cuda}, torch {torch}, transformers {transformers}.",
        "columns": "| part | question | measured | goal |",
        "absent": "not yet measured",
    },
    "zh": {
        "file": "gpu.zh-CN.md",
        "head": """# 在 GPU 上

[English](gpu.md)

在实际测量之前，本项目在 GPU 上的表现只来自公式和 CPU 上的结果。`experiments/gpu/run.py` 用来测量：\
每个问题是一个单独的部分，有自己的时间上限，最重要的排在最前面；权重是随机的，直接在设备上生成，不下载任何东西。

```bash
python experiments/gpu/run.py --plan            # 会运行什么，最多多长时间
python experiments/gpu/run.py --minutes 12      # 在 GPU 上；每个部分之后写入 experiments/gpu/results.json
python experiments/gpu/page.py                  # 重新生成本页
python experiments/gpu/run.py --size tiny       # 小网络，在 CPU 上：脚本能否工作？
```

依赖它的默认值：GPU 上把样本打包成行（`packing`，部分 `7b-lora` 和 `7b-lora-grouped`）、打包行的注意力内核\
（部分 `attention`）、我们自己的输出头和损失（部分 `head`）、不编译解码块（部分 `7b-lora-compiled`）。\
在测量 `7b-lora` 到 `7b-full-8bit` 之前，`check` 和[显存与时间](scale.zh-CN.md) 的估计来自公式。
""",
        "nothing": "尚未测量：没有 results.json。",
        "machine": "测量于 {date}：{device}，CUDA {cuda}，torch {torch}，transformers {transformers}。",
        "columns": "| 部分 | 问题 | 测得 | 目标 |",
        "absent": "尚未测量",
    },
}


def page(language: str, results: dict[str, Any] | None) -> str:
    """The page in a language."""
    text = TEXTS[language]
    said = text["machine"].format(**results["machine"]) if results else text["nothing"]
    return "\n".join([text["head"], said, "", *_table(text, results), ""])


def _table(text: dict[str, str], results: dict[str, Any] | None) -> Iterator[str]:
    yield text["columns"]
    yield "|---|---|---|---|"
    parts = (results or {"parts": {}})["parts"]
    for part in PARTS:
        measured = text["absent"]
        if part.name in parts:
            measured = ", ".join(_said(parts[part.name] | _compared(part.name, parts)))
        goal = ", ".join(f"{_name(key)} {value}" for key, value in GOALS.get(part.name, {}).items())
        yield f"| `{part.name}` | {part.question} | {measured} | {goal} |"


def _compared(name: str, parts: dict[str, Any]) -> dict[str, float]:
    """What goals ask of two measured numbers: a memory beside its estimate, ours beside TRL."""
    found, ours, compared = parts[name], parts.get("7b-lora", {}), {}
    if {"estimated_gb", "peak_gb"} <= found.keys():
        compared["estimate_over_peak"] = found["estimated_gb"] / found["peak_gb"]
    if name == "trl" and "tokens_per_second" in found.keys() & ours.keys():
        compared["our_tokens_over_theirs"] = ours["tokens_per_second"] / found["tokens_per_second"]
    if name == "trl" and "peak_gb" in found.keys() & ours.keys():
        compared["our_memory_over_theirs"] = ours["peak_gb"] / found["peak_gb"]
    return compared


def _said(found: dict[str, Any], before: str = "") -> Iterator[str]:
    for key, value in found.items():
        if isinstance(value, dict):
            yield from _said(value, f"{before}{_name(key)} ")
        elif key != "wall_seconds":
            yield f"{before}{_name(key)} {_number(value)}"


def _name(key: str) -> str:
    return key.replace("_", " ")


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, float | int):
        return str(value).splitlines()[-1][:200].replace("|", "/")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def main() -> None:
    """Write both."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else None
    for language, text in TEXTS.items():
        (DOCS / text["file"]).write_text(page(language, results), encoding="utf-8")


if __name__ == "__main__":
    main()
