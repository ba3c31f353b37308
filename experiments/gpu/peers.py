"""TRL on the shape of Baichuan-7B, which is Llama's, with what it has for speed: packing, liger, flash attention."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from shapes import device, open_random, synchronize
from training import ROW_LENGTH, STEPS
from transformers import LlamaForCausalLM, TrainerCallback

ROWS, ACCUMULATION = 4, 4
"""As the configuration baichuan7b_lora has them."""


class Clock(TrainerCallback):
    """Times the optimizer steps after the first ones."""

    def __init__(self, before: int, timed: int) -> None:
        self.before, self.timed = before, timed
        self.seconds = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin, or end."""
        if state.global_step not in {self.before, self.before + self.timed}:
            return
        synchronize()
        self.seconds = time.perf_counter() - self.seconds


def measure(folder: Path, size: str) -> dict[str, Any]:
    """Tokens a second and peak memory of LoRA in bfloat16 on packed rows."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    torch.manual_seed(0)
    checkpoint = open_random(folder, "Baichuan-7B", size)
    config: Any = checkpoint.family.native_config(checkpoint.family.network_config)
    if find_spec("flash_attn"):
        config._attn_implementation = "flash_attention_2"
    with device():
        network = LlamaForCausalLM(config).to(torch.bfloat16)
    before, timed = STEPS[size]
    length = ROW_LENGTH[size]
    rows = torch.randint(20, 1000, ((before + timed) * ROWS * ACCUMULATION, length)).tolist()
    clock = Clock(before, timed)
    trainer = SFTTrainer(
        model=network,
        args=SFTConfig(
            output_dir=str(folder / "trl"),
            max_steps=before + timed,
            per_device_train_batch_size=ROWS,
            gradient_accumulation_steps=ACCUMULATION,
            gradient_checkpointing=True,
            max_length=length,
            bf16=device().type == "cuda",
            use_liger_kernel=find_spec("liger_kernel") is not None,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"input_ids": row, "labels": row} for row in rows]),
        processing_class=checkpoint.load_tokenizer(),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        callbacks=[clock],
    )
    trainer.train()
    found = {"tokens_per_second": timed * ROWS * ACCUMULATION * length / clock.seconds}
    if torch.cuda.is_available():
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found
