"""Bytes of a LoRA run's checkpoint and adapter, beside those of its base.

python experiments/checkpoint_size/run.py
"""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path

from lit_sft.__main__ import main as lit_sft
from lit_sft.checkpoint.opening import find_family
from lit_sft.checkpoint.tiny import demo_texts
from lit_sft.families._base import TinySize

# A wide vocabulary is the cheapest way to many bytes.
SIZE = TinySize(
    hidden_size=512, intermediate_size=1376, num_layers=4, num_heads=8, vocab_size=150_000, context_length=256
)
DATA = Path(__file__).parents[2] / "lit_sft" / "demo" / "belle_train.json"


def measure(root: Path, tuning: dict[str, object]) -> tuple[int, int]:
    """Bytes of last.ckpt and of the adapter after a step."""
    runs = root / json.dumps(tuning).translate({ord(char): None for char in '{}": '})
    model = {
        "class_path": "SFT",
        "init_args": {
            "checkpoint": str(root / "model"),
            "tuning": {"class_path": "LoRA", "init_args": tuning},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-4}},
        },
    }
    corpora = [{"class_path": "Belle", "init_args": {"path": str(DATA)}}]
    data = {
        "class_path": "SFTData",
        "init_args": {
            "corpora": corpora,
            "max_length": 64,
            "micro_batch_size": 1,
            "cache": str(root / "cache"),
            "validation_fraction": 0.0,
        },
    }
    trainer = {"max_steps": 1, "max_epochs": 1, "accelerator": "cpu", "precision": "32-true",
               "enable_progress_bar": False, "logger": False}  # fmt: skip
    config = root / "config.json"
    config.write_text(
        json.dumps({"runs": str(runs), "samples": {"count": 0}, "model": model, "data": data, "trainer": trainer})
    )
    if lit_sft(["fit", "--config", str(config)]):
        raise SystemExit(1)
    (run,) = runs.iterdir()
    return (
        (run / "checkpoints" / "last.ckpt").stat().st_size,
        sum(file.stat().st_size for file in (run / "adapter").iterdir()),
    )


def main() -> None:
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "model").mkdir()
        find_family("baichuan-7b").write_tiny(root / "model", demo_texts(), SIZE)
        base = sum(file.stat().st_size for file in (root / "model").iterdir())
        print("| tuning | base MB | last.ckpt MB | adapter/ MB |")
        print("|---|---|---|---|")
        for tuning in ({"rank": 16}, {"rank": 16, "dora": True}):
            checkpoint, adapter = measure(root, tuning)
            said = ", ".join(f"{key} {value}" for key, value in tuning.items())
            print(f"| {said} | {base / 1e6:.0f} | {checkpoint / 1e6:.2f} | {adapter / 1e6:.2f} |", flush=True)


if __name__ == "__main__":
    main()
