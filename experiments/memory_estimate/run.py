"""Peak memory of a training step beside its estimate, on the CPU.

    python experiments/memory_estimate/run.py     # a random model of 75 million parameters in a temporary folder

Each case is a process of its own. Its peak is the weights before the step and, above them, the highest sum of what
torch's allocator gave and took during the second optimizer step, as the profiler has it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS, ROW_LENGTH, SUPERVISED = 2, 256, 0.5
METHODS = ("Full", "LoRA", "QLoRA")


def write_checkpoint(folder: Path) -> None:
    """Baichuan-7B at a quarter of its width, with an eighth of its layers."""
    from lit_sft.checkpoint.opening import find_family
    from lit_sft.checkpoint.tiny import demo_texts
    from lit_sft.families._base import TinySize

    folder.mkdir()
    size = TinySize(
        hidden_size=1024,
        intermediate_size=2752,
        num_layers=4,
        num_heads=8,
        vocab_size=12000,
        context_length=2048,
    )
    find_family("baichuan-7b").write_tiny(folder, demo_texts(), size)


def _batch() -> Any:
    """Random ids, of which the second half of a row carries loss."""
    import torch

    from lit_sft.data.batch import Batch

    ids = torch.randint(10, 5000, (ROWS, ROW_LENGTH))
    labels = ids.clone()
    labels[:, : int(ROW_LENGTH * (1 - SUPERVISED))] = -100
    return Batch(
        input_ids=ids,
        labels=labels,
        position_ids=None,
        segment_ids=torch.ones_like(ids),
        corpus_ids=torch.zeros_like(ids),
        corpora=["random"],
        num_tokens=ids.numel(),
        num_supervised=int((labels != -100).sum()),
        sources=[],
        epoch_progress=1.0,
    )


def _highest(step: Callable[[], None]) -> int:
    """Bytes at the peak of a step above what was there before it."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    current = highest = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            highest = max(highest, current)
    return highest


def measure(folder: Path, method: str, precision: str, checkpointing: bool) -> dict[str, float]:
    """Two steps in this process; the second counts."""
    import torch

    from lit_sft.preflight.memory import Plan, estimate
    from lit_sft.preflight.network import measure_network
    from lit_sft.stages.sft import SFT
    from lit_sft.tuning.full import Full
    from lit_sft.tuning.lora import LoRA
    from lit_sft.tuning.qlora import QLoRA

    tuning = Full() if method == "Full" else {"LoRA": LoRA, "QLoRA": QLoRA}[method](rank=16, dropout=0.05)
    stage = SFT(checkpoint=str(folder), tuning=tuning, gradient_checkpointing=checkpointing)
    network = tuning.load(stage.checkpoint, precision)
    if checkpointing:
        tuning.causal_lm(network).activation_checkpointing_enable({"use_reentrant": False})
    stage.model = network.train()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-4, fused=True)
    batch = _batch()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = stage(batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    states = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    # A fused weight of the checkpoint is one storage under several names.
    storages = [tensor.untyped_storage() for tensor in [*network.parameters(), *states]]
    held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    held += sum(_scales(parameter) for parameter in network.parameters())
    highest = _highest(step)
    plan = Plan(
        stage.tuning.footprint(stage.checkpoint.family.lora_targets),
        precision=precision,
        rows=ROWS,
        row_length=ROW_LENGTH,
        gradient_checkpointing=checkpointing,
        supervised_share=SUPERVISED,
        update_copies="none",
    )
    found = estimate(measure_network(stage.checkpoint.family), plan)
    return {"measured": held + highest, "estimated": found.total, "held": held, **found.parts}


def _scales(parameter: object) -> int:
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return 0
    nested = state.state2
    return state.absmax.nbytes + (nested.absmax.nbytes if nested else 0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", nargs=4)
    parser.add_argument(
        "--precisions", nargs="+", default=["32-true"], help="bf16-mixed takes minutes a step on most CPUs"
    )
    arguments = parser.parse_args()
    if arguments.case:
        folder, method, precision, checkpointing = arguments.case
        print(json.dumps(measure(Path(folder), method, precision, checkpointing == "on")))
        return
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("| tuning | precision | checkpointing | measured, MB | estimated, MB | difference |")
    print("|---|---|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "model"
        write_checkpoint(folder)
        for precision, method, checkpointing in itertools.product(arguments.precisions, METHODS, ("on", "off")):
            case = [sys.executable, __file__, "--case", str(folder), method, precision, checkpointing]
            done = subprocess.run(case, check=True, capture_output=True, text=True)
            r = json.loads(done.stdout.splitlines()[-1])
            print(f"{ {k: round(v / 1e6) for k, v in r.items()} }", file=sys.stderr)
            difference = r["estimated"] / r["measured"] - 1
            print(
                f"| {method} | {precision} | {checkpointing} | {r['measured'] / 1e6:,.0f} "
                f"| {r['estimated'] / 1e6:,.0f} "
                f"| {difference:+.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
