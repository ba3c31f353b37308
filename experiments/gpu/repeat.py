"""Two runs, and one that was stopped and resumed, by the command line: are their weights equal to the bit?"""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from safetensors.torch import load_file
from shapes import write_checkpoint, write_conversations

from lit_sft.cli.fit import main
from lit_sft.errors import Stopped

STEPS = 8


class StopAt(Callback):
    """Ends a run as a signal would, behind an optimizer step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Send it."""
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def measure(folder: Path, size: str) -> dict[str, Any]:
    """Of a small network under LoRA with packed rows, in bf16-mixed on a GPU."""
    checkpoint = write_checkpoint(folder, "Baichuan-7B", "tiny")
    conversations = write_conversations(folder / "conversations.jsonl", "tiny")
    whole = _fit(folder, "whole", checkpoint, conversations, STEPS)
    again = _fit(folder, "again", checkpoint, conversations, STEPS)
    _fit(folder, "stopped", checkpoint, conversations, STEPS, stops_at=STEPS // 2)
    resumed = _fit(folder, "stopped", checkpoint, conversations, STEPS, is_resumed=True)
    return {"two_runs": _difference(whole, again), "resumed": _difference(whole, resumed)}


def _fit(
    folder: Path,
    name: str,
    checkpoint: Path,
    conversations: Path,
    steps: int,
    *,
    stops_at: int | None = None,
    is_resumed: bool = False,
) -> Path:
    """The adapter that was trained."""
    on_gpu = torch.cuda.is_available()
    callbacks = [{"class_path": "repeat.StopAt", "init_args": {"step": stops_at}}] if stops_at else []
    model = {"checkpoint": str(checkpoint), "tuning": {"class_path": "LoRA"}, "gradient_checkpointing": True}
    config = {
        "seed_everything": 1,
        "name": name,
        "runs": str(folder / "runs"),
        "model": {"class_path": "SFT", "init_args": model},
        "data": {
            "class_path": "SFTData",
            "init_args": {
                "corpora": [{"class_path": "JsonlChat", "init_args": {"path": str(conversations)}}],
                "max_length": 256,
                "micro_batch_size": 2,
                "packing": True,
                "cache": str(folder / "cache"),
            },
        },
        "trainer": {
            "accelerator": "auto" if on_gpu else "cpu",
            "precision": "bf16-mixed" if on_gpu else "32-true",
            "max_steps": steps,
            "accumulate_grad_batches": 2,
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "callbacks": callbacks,
        },
        "samples": {"count": 0},
    }
    file = folder / f"{name}.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    words = ["fit", "--config", str(file)]
    with suppress(Stopped):
        main([*words, "--resume", "auto", "--trainer.callbacks=null"] if is_resumed else words)
    (run,) = (folder / "runs").glob(f"{name}-*")
    return run / "adapter"


def _difference(one: Path, other: Path) -> float:
    """The largest of any weight."""
    weights = load_file(one / "adapter_model.safetensors")
    others = load_file(other / "adapter_model.safetensors")
    return max(float((weight - others[name]).abs().max()) for name, weight in weights.items())
