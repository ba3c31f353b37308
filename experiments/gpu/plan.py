"""What is measured, in the order of its worth: the first minutes answer what most depends on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Part:
    """A question, answered by a process of its own.

    Args:
        name: Of the part.
        seconds: After which it is given up.
        module: Which of the files beside this one measures it.
        question: What it answers.
        options: For the module's `measure`.
        needs: Packages without which it is left out.
    """

    name: str
    seconds: int
    module: str
    question: str
    options: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


def _training(name: str, seconds: int, question: str, needs: tuple[str, ...] = (), **options: Any) -> Part:
    return Part(name, seconds, "training", question, options, needs)


BNB = ("bitsandbytes",)

PARTS = [
    Part("families", 60, "families", "Does every family compute on the device what it computes on the CPU?"),
    Part("attention", 60, "attention", "Is attention of packed rows that of their examples, forward and backward?"),
    _training("7b-lora", 90, "Baichuan-7B, LoRA, packed rows of 2,048", config="baichuan7b_lora"),
    _training("7b-qlora", 90, "Baichuan-7B, QLoRA, packed rows of 2,048", BNB, config="baichuan7b_qlora"),
    Part("repeat", 90, "repeat", "Are two runs, and a run that was resumed, equal to the bit?"),
    _training("13b-lora", 90, "Baichuan-13B (ALiBi), LoRA, packed", config="baichuan13b_lora"),
    _training("16b-qlora", 120, "MOSS-16B, QLoRA, packed", BNB, config="moss16b_qlora"),
    _training("7b-full-8bit", 120, "Baichuan-7B, full, AdamW in 8 bits", BNB, config="baichuan7b_full", is_8bit=True),
    Part("head", 60, "head", "Head and loss: our own beside liger and cut cross entropy"),
    _training(
        "7b-lora-grouped", 90, "A row for each example in place of packed rows", config="baichuan7b_lora", packing=False
    ),
    Part("answers", 90, "answers", "Tokens a second of predict by batch, and of K answers to each prompt"),
    _training("7b-lora-dpo", 90, "Steps of DPO", config="baichuan7b_lora", overlay="dpo"),
    _training("7b-lora-grpo", 120, "Rollouts and steps of GRPO", config="baichuan7b_lora", overlay="grpo"),
    Part("ratio", 30, "ratio", "Is the ratio of a policy to itself exactly 1 in bfloat16?"),
    _training("7b-lora-compiled", 180, "Compiled blocks", config="baichuan7b_lora", is_compiled=True),
    Part("trl", 150, "peers", "TRL on the same shape, with what it has for speed", needs=("trl",)),
    Part("graph", 120, "graph", "The exported graph on the CUDA provider", needs=("onnxruntime",)),
]
