"""Full tuning: every weight trains."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_sft.checkpoint.opening import Checkpoint
from lit_sft.tuning._base import Footprint, Tuning

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


class Full(Tuning):
    """Every weight trains: in float32 under `32-true` and the mixed precisions, in bfloat16 under `bf16-true`.

    Args:
        dropout: That of adapters, of which there are none, so it does nothing: an overlay says it for every tuning, and
            a configuration of LoRA that is told to tune fully still has it.
    """

    export_name = "model"

    def __init__(self, dropout: float = 0.0) -> None:
        if dropout:
            log.warning("dropout %s does nothing: Full has no adapters to drop inputs of", dropout)

    def load(self, checkpoint: Checkpoint, precision: str) -> PreTrainedModel:
        """The network as it is; mixed precision keeps float32 masters."""
        import torch

        model = checkpoint.load_model(dtype=torch.bfloat16 if precision == "bf16-true" else torch.float32)
        return model.requires_grad_(True)

    def footprint(self, family_targets: Sequence[str]) -> Footprint:
        """Every weight with its gradient and states."""
        return Footprint(trains_base=True)

    def causal_lm(self, model: Any) -> PreTrainedModel:
        """Nothing is wrapped."""
        network: PreTrainedModel = model
        return network

    def save(self, model: Any, folder: Path, checkpoint: Checkpoint, weights: dict[str, Any] | None = None) -> None:
        """A folder in the original layout, with the base's tokenizer, that `open_checkpoint` reads."""
        checkpoint.save_model(model, folder, weights)
