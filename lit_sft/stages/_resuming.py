"""How a stage goes on: what a training checkpoint holds of it, and which one it takes."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule
from torch.optim import Optimizer

from lit_sft.distributed.processes import gather
from lit_sft.errors import TrainingError
from lit_sft.stages._random import random_state, set_random_state
from lit_sft.stages._rescaling import rescale_progress


class Resuming(LightningModule):
    """A module whose run, when it goes on, is the same as one that was never interrupted."""

    def __init__(self) -> None:
        super().__init__()
        self.progress = 0.0
        """Share of the run that is done with the latest optimizer step."""
        self._loaded: dict[str, Any] = {}
        self._random_state: dict[str, Any] | None = None
        # A checkpoint holds only what trained; on_load_checkpoint compares the names instead.
        self.strict_loading = False

    def on_train_start(self) -> None:
        """Go on with the random numbers."""
        states, self._loaded = self._loaded.get("random_states", []), {}
        if len(states) == self.trainer.world_size:
            set_random_state(states[self.trainer.global_rank], self.device)

    def on_validation_start(self) -> None:
        """Keep the random numbers."""
        self._random_state = random_state(self.device)

    def on_validation_end(self) -> None:
        """Answers that were sampled must not change what is trained."""
        if self._random_state:
            set_random_state(self._random_state, self.device)
            self._random_state = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what trained, for the frozen base lies in its folder, and the random numbers to come."""
        checkpoint["run_share"] = self.progress
        checkpoint["num_devices"] = self.trainer.world_size
        checkpoint["optimizers"] = [type(optimizer).__name__ for optimizer in self.trainer.optimizers]
        checkpoint["random_states"] = gather(self._random_state or random_state(self.device))
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another program, model or tuning.

        Raises:
            TrainingError: Naming the first weight that differs.
        """
        if "run_share" not in checkpoint:
            raise TrainingError("the checkpoint is not one of this program; give a last.ckpt or best.ckpt of a run")
        self.progress = checkpoint["run_share"]
        if self.trainer.state.fn == "fit":
            rescale_progress(checkpoint, type(self.trainer.datamodule).__qualname__, self.trainer.world_size)  # type: ignore[attr-defined]
        self.configure_model()
        own = {name: tuple(p.shape) for name, p in self.named_parameters() if p.requires_grad}
        stored = {name: tuple(weight.shape) for name, weight in checkpoint["state_dict"].items()}
        for name in sorted(own.keys() | stored.keys()):
            if own.get(name) != stored.get(name):
                raise TrainingError(
                    f"the checkpoint is of another model or tuning: {name} has shape {stored.get(name, 'none')} in it "
                    f"and {own.get(name, 'none')} here. Start with the configuration it was trained with"
                )
        if self.trainer.state.fn == "fit":
            self._loaded = checkpoint
            for optimizer in self.trainer.optimizers:  # sharded weights have one before a checkpoint is loaded
                self.configure_loaded_optimizer(optimizer)

    def configure_loaded_optimizer(self, optimizer: Optimizer) -> None:
        """Of the optimizer in a checkpoint the moments count; rates, decay and the like come from the configuration."""
        if not self._loaded:
            return
        (stored,), own = self._loaded["optimizers"], type(optimizer).__name__
        if stored != own:
            raise TrainingError(f"the checkpoint's optimizer is {stored}, but that of the configuration is {own}")
        groups = self._loaded["optimizer_states"][0]["param_groups"]
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in optimizer.param_groups]:
            raise TrainingError("the checkpoint's optimizer groups the weights otherwise; resume with the run's tuning")
        for group, configured in zip(groups, optimizer.param_groups, strict=True):
            group.update({name: value for name, value in configured.items() if name != "params"})
