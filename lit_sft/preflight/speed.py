"""Time of a micro-batch on one device, from counts alone: what is slowest of compute, memory and network."""

from __future__ import annotations

from dataclasses import dataclass

from lit_sft.preflight.memory import Plan, base_bytes, num_trained
from lit_sft.preflight.network import NetworkSize


@dataclass(frozen=True)
class Device:
    """What a device can do, as its maker states it.

    Args:
        memory: Bytes.
        flops: Dense half-precision operations a second.
        bandwidth: Bytes a second from its memory.
        link: Bytes a second to the other devices of the machine, one way.
        network: Bytes a second to other machines, one way.
        devices_per_machine: How many share a machine.
        utilization: Share of `flops` that training reaches; an assumption until it is measured.
    """

    memory: float = 80e9
    flops: float = 989e12
    bandwidth: float = 3.35e12
    link: float = 450e9
    network: float = 50e9
    devices_per_machine: int = 8
    utilization: float = 0.4


H100 = Device()


@dataclass(frozen=True)
class StepTime:
    """Seconds of a micro-batch."""

    compute: float
    memory: float
    network: float

    @property
    def total(self) -> float:
        """They overlap: the slowest counts."""
        return max(self.compute, self.memory, self.network)

    @property
    def limit(self) -> str:
        """Name of the slowest."""
        return max(("compute", "memory", "network"), key=lambda name: getattr(self, name))


def step_time(size: NetworkSize, plan: Plan, device: Device = H100) -> StepTime:
    """One micro-batch, forward and backward, and its share of the communication."""
    # Forward 2 operations a weight and token; backward 2 for the activations, and 2 for the weights that train; the
    # forward of the blocks again under checkpointing. Scores of the causal attention, half of T * T.
    trained = num_trained(size, plan)
    head = size.vocabulary * size.hidden_size
    used = size.num_linear_parameters + head
    passes = 2 + plan.gradient_checkpointing
    attention = size.num_layers * size.hidden_size * plan.row_length
    per_token = 2 * (passes * used + min(trained, used)) + 2 * attention * (passes + 1)
    compute = per_token * plan.tokens / (device.flops * device.utilization)
    stored = base_bytes(size, plan)
    moved = passes * stored + trained * (3 * plan.trained_bytes + 2 * plan.optimizer_bytes) / plan.num_shards
    return StepTime(compute, moved / device.bandwidth, _sent(size, plan, stored, trained) / _rate(plan, device))


def _sent(size: NetworkSize, plan: Plan, stored: float, trained: int) -> float:
    """Bytes that a device sends: all-gathers and a reduce-scatter, or an all-reduce of the gradients."""
    others = (plan.num_devices - 1) / plan.num_devices
    gradients = trained * plan.trained_bytes
    if plan.sharding == "fsdp2":
        return others * (2 * stored + gradients)  # weights for the forward and again for the backward pass
    return others * 2 * gradients if plan.sharding == "ddp" else 0.0


def _rate(plan: Plan, device: Device) -> float:
    """The slowest link on the way."""
    return device.link if plan.num_devices <= device.devices_per_machine else device.network
