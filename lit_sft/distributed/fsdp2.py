"""FSDP2: every device holds a part of each weight, and the whole of one decoder block at a time.

`--trainer.strategy fsdp2` is Lightning's ModelParallelStrategy over all devices, with the checkpoints of one device:
the file holds whole tensors of what trained, so a run goes on with any number of devices and under any strategy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map


class FSDP2(ModelParallelStrategy):
    """Data parallelism with sharded weights, gradients and optimizer states."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **kwargs)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning hands the optimizer's state to `load_optimizer_state_dict`."""
        return True

    def setup_environment(self) -> None:
        """Shard over all devices of all nodes, whose number is known only now."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What trains, whole, for the process that writes it."""
        named = self._module.named_parameters()
        return self._gathered({name: parameter for name, parameter in named if parameter.requires_grad})

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's own state, whole, for the process that writes it."""
        return self._gathered(ParallelStrategy.optimizer_state(self, optimizer))

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """The file; each process takes its own part of it afterwards."""
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take the own part of each weight."""
        parameters = dict(self._module.named_parameters())
        for name, weight in checkpoint["state_dict"].items():
            parameters[name].copy_(_part(weight, parameters[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the own part of what the optimizer keeps for each weight."""
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                index: {name: _part(value, parameters[index]) for name, value in values.items()}
                for index, values in stored["state"].items()
            }
            optimizer.load_state_dict({**stored, "state": state})

    @property
    def _module(self) -> LightningModule:
        assert self.lightning_module is not None
        return self.lightning_module

    def _gathered(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state with whole tensors on the CPU of the first process; all take part, the others get nothing."""

        def collect(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            value = whole(value.detach())
            return value.cpu() if self.is_global_zero else None

        gathered: dict[str, Any] = tree_map(collect, state)
        return gathered if self.is_global_zero else {}


StrategyRegistry.register("fsdp2", FSDP2, description="Every weight sharded over all devices")


def shard(stage: LightningModule, blocks: Iterable[nn.Module], methods: Iterable[str] = ()) -> None:
    """Leave on this device its part of each weight.

    A block is gathered while it computes. The rest, with embedding and head, which may be the same matrix, is gathered
    while the stage computes. Only what trains need be of one type, so half-precision and 4-bit weights travel together
    with the adapters beside them.

    Args:
        stage: Holds the network, on the CPU or on the device; its `forward` sets it to work.
        blocks: Modules that are gathered one at a time.
        methods: Methods beside `forward` that set it to work.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in stage.modules():
        if isinstance(module, Linear4bit):
            # A gathered weight is a plain one: the scales must be found beside it.
            packed: Any = module.weight
            module.quant_state = packed.quant_state
    mesh = stage.device_mesh["data_parallel"]  # type: ignore[index]
    for module in [*blocks, stage]:
        fully_shard(module, mesh=mesh)
    for method in methods:
        register_fsdp_forward_method(stage, method)


def num_shares(trainer: Trainer) -> int:
    """Among how many processes prompts are shared out: one where weights are sharded, for then all answer the same."""
    return 1 if isinstance(trainer.strategy, FSDP2) else trainer.world_size


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor that the devices hold parts of; all processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _part(value: Any, parameter: torch.Tensor) -> Any:
    """What this process keeps of a whole tensor that belongs to a sharded parameter; anything else as it is."""
    if not isinstance(parameter, DTensor) or not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    # Every process has the whole tensor: nothing need be sent.
    return distribute_tensor(
        value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )
