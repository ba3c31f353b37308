"""Freeze tuning: the last blocks train, all before them stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lit_sft.checkpoint.opening import Checkpoint
from lit_sft.errors import ConfigError
from lit_sft.tuning._base import Footprint, half_or_full
from lit_sft.tuning.full import Full

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel


class Freeze(Full):
    """The last decoder blocks train; the backward pass ends where they begin.

    What trains is in float32 under `32-true` and the mixed precisions; what does not, in the type of the arithmetic,
    unless the embedding trains.

    Args:
        num_blocks: How many of the last blocks train.
        train_embeddings: Whether the embedding trains, too; the backward pass then goes through all blocks.
        train_head: Whether the head trains, too. Where it is the embedding (ChatGLM-6B), that does as well.
        dropout: As for `Full`: there are no adapters, so it does nothing.
    """

    def __init__(
        self,
        num_blocks: int = 3,
        *,
        train_embeddings: bool = False,
        train_head: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dropout)
        if num_blocks < 0 or not (num_blocks or train_embeddings or train_head):
            raise ConfigError(f"Freeze num_blocks is {num_blocks}, so nothing would train; it must be at least 1")
        self.num_blocks = num_blocks
        self.train_embeddings = train_embeddings
        self.train_head = train_head

    def check(self, checkpoint: Checkpoint) -> None:
        """Whether the network has so many blocks."""
        if self.num_blocks > (total := len(_blocks_of(checkpoint.family.skeleton()))):
            raise ConfigError(f"Freeze num_blocks is {self.num_blocks}, but {checkpoint.path} has {total} blocks")

    def load(self, checkpoint: Checkpoint, precision: str) -> PreTrainedModel:
        """The weights are read in the type in which some of them train; then the others give up what they need not."""
        model = super().load(checkpoint, precision).requires_grad_(False)
        blocks = _blocks_of(model)
        head: Any = model.get_output_embeddings()
        embedding: Any = model.get_input_embeddings()
        first = len(blocks) - self.num_blocks
        wanted = [part for part, trains in ((embedding, self.train_embeddings), (head, self.train_head)) if trains]
        for module in (*blocks[first:], *wanted):
            module.requires_grad_(True)
        if not embedding.weight.requires_grad:
            # Angles and masks take the type of the embedding, so that it must not be wider than what follows.
            _narrow(model, half_or_full(precision), keeps_top=self.train_head)
            if self.num_blocks:
                blocks[first].register_forward_pre_hook(_take_own_type, with_kwargs=True)
            blocks[-1].register_forward_hook(partial(_give_type, dtype=head.weight.dtype))
        return model

    def footprint(self, family_targets: Sequence[str]) -> Footprint:
        """What trains with its gradient and states."""
        return Footprint(
            trains_base=True,
            trained_blocks=self.num_blocks,
            trains_embeddings=self.train_embeddings,
            trains_head=self.train_head,
        )

    def choices(self) -> dict[str, str | float]:
        """What trains."""
        beside = [name for name, trains in (("embeddings", self.train_embeddings), ("head", self.train_head)) if trains]
        return {"blocks": self.num_blocks, "kind": " and ".join(["blocks", *beside])}

    def save(self, model: Any, folder: Path, checkpoint: Checkpoint, weights: dict[str, Any] | None = None) -> None:
        """A folder in the original layout; where weights are shared out, what did not train is read once more."""
        if weights is not None and (missing := model.state_dict().keys() - weights.keys()):
            base = checkpoint.load_model(dtype=next(iter(weights.values())).dtype).state_dict()
            weights = {**{name: base[name] for name in missing}, **weights}
        super().save(model, folder, checkpoint, weights)


def _narrow(model: Any, dtype: torch.dtype, *, keeps_top: bool) -> None:
    """Convert what does not train; what stands above the blocks only where the head is none of what does."""
    lower = {id(p) for module in (model.get_input_embeddings(), *_blocks_of(model)) for p in module.parameters()}
    for parameter in model.parameters():
        if not parameter.requires_grad and (id(parameter) in lower or not keeps_top):
            parameter.data = parameter.data.to(dtype)


def _take_own_type(
    block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Hidden states [B, T, C] come in the type of the blocks below."""
    dtype = next(block.parameters()).dtype
    if args:
        return (args[0].to(dtype), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"].to(dtype)}


def _give_type(block: torch.nn.Module, args: tuple[Any, ...], output: Any, dtype: torch.dtype) -> Any:
    """Hidden states [B, T, C] leave in the type of the head."""
    return (output[0].to(dtype), *output[1:]) if isinstance(output, tuple) else output.to(dtype)


def _blocks_of(network: Any) -> list[Any]:
    kinds = set(network._no_split_modules or ())
    return [module for module in network.modules() if type(module).__name__ in kinds]
