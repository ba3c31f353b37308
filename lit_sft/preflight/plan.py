"""From a configuration to a plan, and from an estimate to what to change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from math import ceil
from pathlib import Path
from typing import Any

import torch

from lit_sft.errors import ConfigError
from lit_sft.families._base import Family
from lit_sft.plugins import discover
from lit_sft.preflight.memory import Memory, Plan, estimate, num_trained
from lit_sft.preflight.network import NetworkSize, measure_network
from lit_sft.rewards.trained import exported
from lit_sft.tuning._base import Footprint, Tuning
from lit_sft.tuning.lora import LoRA
from lit_sft.tuning.qlora import QLoRA

GB = 1e9

FSDP2_ON_EIGHT: dict[str, Any] = {"sharding": "fsdp2", "num_devices": 8}

OPTIMIZER_BYTES = {"SGD": 0, "Adafactor": 0, "AdamW8bit": 2, "Adam8bit": 2, "PagedAdamW8bit": 2, "Lion": 4}
"""State of an optimizer, bytes a trained parameter; two float32 moments for all others."""


def plan_of(config: Any, tuning: Tuning, family: Family, num_devices: int, *, is_gpu: bool) -> Plan:
    """What of a parsed configuration decides about memory.

    Args:
        config: With `model`, `data` and `trainer`, as `fit` takes them.
        tuning: That of `config.model`, made.
        family: Of the checkpoint; its own targets count where the tuning names none.
        num_devices: Of all machines.
        is_gpu: Whether the devices are GPUs.
    """
    model, data, trainer = config.model.init_args, config.data.init_args, config.trainer
    strategy = str(trainer.strategy)
    precision = str(trainer.precision or "32-true")
    optimizer = model.get("optimizer")
    # The stage's own optimizer is fused.
    is_fused = not optimizer or bool(_argument(optimizer, "fused")) or _optimizer_name(optimizer).endswith("8bit")
    num_sequences = int(member(config.data.class_path, "lit_sft.data._base.CorpusData").sequences_in_row)
    plan = Plan(
        tuning=footprint_of(tuning, family),
        precision={"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}.get(precision, precision),
        rows=data.micro_batch_size,
        row_length=data.max_length * num_sequences,
        sequences_in_row=num_sequences,
        gradient_checkpointing=bool(model.gradient_checkpointing),
        sharding="fsdp2" if strategy == "fsdp2" else "ddp" if num_devices > 1 else "none",
        num_devices=num_devices,
        head_use=member(config.model.class_path, "lit_sft.stages._base.Stage").head_use,
        frozen_adapters=int(_keeps_copy(model.get("objective"), tuning)),
        accumulates=int(trainer.accumulate_grad_batches or 1) > 1,
        update_copies="none" if is_fused else "all" if is_gpu else "largest",
    )
    if model.get("rewards"):
        plan = _with_rollouts(plan, model, data, tuning, family)
    name = _optimizer_name(optimizer)
    if name == "SGD" and _argument(optimizer, "momentum"):
        return replace(plan, optimizer_bytes=plan.trained_bytes)
    return replace(plan, optimizer_bytes=OPTIMIZER_BYTES.get(name, 2 * plan.trained_bytes))


def footprint_of(tuning: Tuning, family: Family) -> Footprint:
    """What a tuning asks of the memory, its targets by the names of the network whatever an adapter calls them."""
    found = tuning.footprint(family.lora_targets)
    if not (tuning.adapter and found.targets):
        return found
    from lit_sft.tuning._targets import network_targets  # loads peft, which full tuning does without

    return replace(found, targets=network_targets(found.targets, family.skeleton()))


def num_devices(devices: Any, accelerator: Any) -> int:
    """How many devices of a machine `trainer.devices` means: those that it has, where it does not say."""
    if isinstance(devices, list):
        return len(devices)
    if isinstance(devices, str) and "," in devices:
        return len([device for device in devices.split(",") if device.strip()])
    if str(devices).isdigit():
        return int(devices)
    return 1 if accelerator == "cpu" else max(1, torch.accelerator.device_count())


def is_on_gpu(accelerator: Any) -> bool:
    """Whether `trainer.accelerator` means a GPU here."""
    return torch.cuda.is_available() and str(accelerator) != "cpu"


def refuse_mps(accelerator: Any) -> None:
    """Refuse Apple's GPUs, which lack float64.

    Raises:
        ConfigError: If `trainer.accelerator` means one.
    """
    name = str(accelerator).lower()
    is_chosen = name in {"auto", "gpu", "none"} and not torch.cuda.is_available() and torch.backends.mps.is_available()
    if name == "mps" or is_chosen:
        raise ConfigError(
            "trainer.accelerator: MPS (Apple GPU) is not supported, only CUDA and CPU, on Linux. Set it to cpu"
        )


def device_memory(accelerator: str) -> float:
    """Bytes of the device that would be used: of the first GPU, or else of the machine."""
    if is_on_gpu(accelerator):
        return float(torch.cuda.get_device_properties(0).total_memory)
    import psutil

    return float(psutil.virtual_memory().total)


def remedies(size: NetworkSize, plan: Plan, family_targets: Sequence[str], memory: float) -> list[str]:
    """Changes that make it fit, each alone, the cheapest first; what must be combined where none does."""
    lora, qlora = (tuning().footprint(family_targets) for tuning in (LoRA, QLoRA))
    smaller_rows = (
        "model.init_args.num_parts and trainer.accumulate_grad_batches: as many as there are answers"
        if plan.cache_tokens
        else "data.init_args.micro_batch_size: 1, with more trainer.accumulate_grad_batches"
    )
    changes = [
        ("model.init_args.gradient_checkpointing: true", {"gradient_checkpointing": True}),
        (smaller_rows, {"rows": 1}),
        (f"model.init_args.rollout_tokens: {plan.cache_tokens // 4}", {"cache_tokens": plan.cache_tokens // 4}),
        (
            f"data.init_args.max_length: {plan.row_length // plan.sequences_in_row // 2}",
            {"row_length": plan.row_length // 2},
        ),
        ("trainer.precision: bf16-mixed", {"precision": "bf16-mixed"}),
        ("tuning LoRA", {"tuning": lora, "optimizer_bytes": 8}),
        ("tuning QLoRA", {"tuning": qlora, "optimizer_bytes": 8}),
        *(() if plan.cache_tokens else [("trainer.strategy: fsdp2 on 8 devices", FSDP2_ON_EIGHT)]),
        (
            "tuning QLoRA with gradient_checkpointing and micro_batch_size 1",
            {"tuning": qlora, "optimizer_bytes": 8, "gradient_checkpointing": True, "rows": 1},
        ),
    ]
    tried = [(text, replace(plan, **change)) for text, change in changes]
    working = [text for text, other in tried if other != plan and estimate(size, other).total <= memory]
    return working[:3]


def describe(found: Memory) -> str:
    """The parts in GB."""
    return ", ".join(f"{value / GB:.3g} {name}" for name, value in found.parts.items() if value >= 0.0005 * found.total)


def verdict(size: NetworkSize, plan: Plan, family_targets: Sequence[str], memory: float) -> tuple[bool, str]:
    """Whether it fits, and a line that says so, with what to change if not."""
    found = estimate(size, plan)
    fits = found.total <= memory
    line = f"about {found.total / GB:.3g} GB of {memory / GB:.3g} GB a device ({describe(found)})"
    if fits:
        return True, line
    working = remedies(size, plan, family_targets, memory)
    return False, f"{line}. It does not fit. " + (
        f"Any of these would: {'; '.join(working)}"
        if working
        else "No single change would: take more or larger devices"
    )


def _with_rollouts(plan: Plan, model: Any, data: Any, tuning: Tuning, family: Family) -> Plan:
    """Where a policy learns from its own answers: a micro-batch is a part of a rollout, not what the data hands out."""
    return replace(
        plan,
        rows=ceil(data.micro_batch_size * model.num_answers / model.num_parts),
        supervised_share=min(1.0, data.max_new_tokens / data.max_length),
        cache_tokens=max(model.rollout_tokens, data.max_length),
        further_bytes=_reference_bytes(plan, model, tuning, family) + sum(map(_reward_bytes, model.rewards)),
    )


def _reference_bytes(plan: Plan, model: Any, tuning: Tuning, family: Family) -> float:
    """Of what training starts from, where the network cannot answer as it without weights of their own."""
    if not (model.beta or model.max_kl):
        return 0.0
    size = measure_network(family)
    if not tuning.keeps_reference:
        return float(size.num_parameters * plan.trained_bytes)
    return float(num_trained(size, plan) * plan.trained_bytes) if tuning.adapter else 0.0


def _reward_bytes(reward: Any) -> float:
    """Of a reward model, as large as what its run exported; a rule has none."""
    options = reward.get("init_args") or {}
    if not str(reward.class_path).endswith(".Trained"):
        return 0.0
    return float(sum(file.stat().st_size for file in exported(Path(options["path"])).glob("*.safetensors")))


def member(class_path: str, base: str) -> Any:
    """The class that a configuration names, by its path or as a member of the folder of its base."""
    module, _, name = class_path.rpartition(".")
    kinds: dict[str, Any] = vars(import_module(module)) if module else discover(base)
    return kinds[name]


def _keeps_copy(objective: Any, tuning: Tuning) -> bool:
    """Whether the adapter to start from is kept as the reference of an objective."""
    if not objective or not tuning.adapter:
        return False
    return bool(member(objective["class_path"], "lit_sft.objectives._base.Objective").needs_reference)


def _optimizer_name(optimizer: Any) -> str:
    path = optimizer.get("class_path", "") if hasattr(optimizer, "get") else ""
    return str(path).rpartition(".")[2]


def _argument(optimizer: Any, name: str) -> Any:
    arguments = optimizer.get("init_args") if hasattr(optimizer, "get") else None
    return arguments.get(name) if arguments else None
