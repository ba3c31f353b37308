"""LoRA (Hu et al. 2021, arXiv:2106.09685): y = Wx + alpha/rank * B(Ax), W frozen, on peft; and what was built on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_sft.checkpoint.opening import Checkpoint
from lit_sft.errors import ConfigError, accepted
from lit_sft.tuning._base import Footprint, Tuning, half_or_full

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel


ADAPTER_CONFIG = "adapter_config.json"


class LoRA(Tuning):
    """Low-rank adapters in float32 beside a frozen base, which is in bfloat16 if the arithmetic is.

    Args:
        rank: Inner dimension of the adapters.
        alpha: Numerator of their scale alpha / rank.
        dropout: Probability with which an input of an adapter is dropped.
        targets: Names of the linear layers to adapt; the family's own if not given.
        rslora: Scale by alpha / sqrt(rank), so that higher ranks learn as fast (Kalajdzievski 2023, arXiv:2312.03732).
        dora: Train the length of each row of W + BA apart from its direction (Liu et al. 2024, arXiv:2402.09353);
            slower, for each step computes the whole matrix.
        lora_plus_ratio: Learning rate of B as a multiple of that of A, 16 for example (LoRA+: Hayou et al. 2024,
            arXiv:2402.12354); the same if not given.
        adapter: A PEFT adapter folder to start from; everything but `lora_plus_ratio` is then read from it.
    """

    export_name = "adapter"

    def __init__(
        self,
        rank: int = 16,
        alpha: float = 32.0,
        dropout: float = 0.0,
        targets: list[str] | None = None,
        rslora: bool = False,
        dora: bool = False,
        lora_plus_ratio: float | None = None,
        adapter: str | None = None,
    ) -> None:
        if rank < 1:
            raise ConfigError(f"LoRA rank is {rank}; it must be at least 1")
        if not 0 <= dropout < 1:
            raise ConfigError(f"LoRA dropout is {dropout}; it must be at least 0 and below 1")
        if lora_plus_ratio is not None and lora_plus_ratio <= 0:
            raise ConfigError(f"LoRA lora_plus_ratio is {lora_plus_ratio}; it must be above 0")
        if adapter and not (Path(adapter) / ADAPTER_CONFIG).is_file():
            raise ConfigError(f"LoRA adapter {adapter} is no PEFT folder: it holds no {ADAPTER_CONFIG}")
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.targets = targets
        self.rslora = rslora
        self.dora = dora
        self.lora_plus_ratio = lora_plus_ratio
        self.adapter = adapter

    def load(self, checkpoint: Checkpoint, precision: str) -> PeftModel:
        """The base with adapters; a fresh adapter changes nothing until it has trained, for B is zero.

        peft makes adapters float32 beside half-precision weights: their updates are smaller than a step of bfloat16.
        """
        from peft.tuners.lora import LoraLayer

        wrapped = self._wrap(checkpoint, precision)
        for layer in wrapped.modules():
            # DoRA computes with the weights beside the input: the lengths of rows in float32, as they were measured.
            if isinstance(layer, LoraLayer) and not layer.lora_variant:
                layer._cast_input_dtype = _unless_autocast  # type: ignore[method-assign]
        return wrapped

    def _wrap(self, checkpoint: Checkpoint, precision: str) -> PeftModel:
        from peft import LoraConfig, PeftModel, get_peft_model
        from peft.tuners.lora import LoraLayer

        model = self.load_base(checkpoint, precision)
        if self.adapter:
            return PeftModel.from_pretrained(model, self.adapter, is_trainable=True)
        targets = self.targets or list(checkpoint.family.lora_targets)
        _check_targets(model, targets)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft computes with any number
            lora_dropout=self.dropout,
            target_modules=targets,
            use_rslora=self.rslora,
            use_dora=self.dora,
            bias="none",
            task_type="CAUSAL_LM",
        )
        wrapped = get_peft_model(model, config)
        assert isinstance(wrapped, PeftModel)
        if self.dora:
            # peft measured the rows before it made the adapters float32, with the rounding of half precision.
            for layer in wrapped.modules():
                if isinstance(layer, LoraLayer):
                    layer.lora_variant["default"].init(layer, "default")
        return wrapped

    @cached_property
    def adapter_config(self) -> dict[str, Any]:
        """What the adapter to start from says of itself; empty for a fresh one.

        Raises:
            ConfigError: If that is not a JSON object.
        """
        if not self.adapter:
            return {}
        file = Path(self.adapter) / ADAPTER_CONFIG
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{file} is not valid JSON ({error}); copy the adapter again") from None
        if not isinstance(content, dict):
            raise ConfigError(f"{file} is not a JSON object; copy the adapter again")
        return content

    def footprint(self, family_targets: Sequence[str]) -> Footprint:
        """Adapters of its rank beside a base of the arithmetic's type; those of the adapter to start from, if any."""
        stored = self.adapter_config
        targets = stored.get("target_modules", self.targets)
        return Footprint(
            rank=int(stored.get("r", self.rank)),
            # A pattern in place of names is peft's own way to say most layers.
            targets=tuple(targets) if isinstance(targets, list) else tuple(family_targets),
            dropout=float(stored.get("lora_dropout", self.dropout)),
            dora=bool(stored.get("use_dora", self.dora)),
        )

    def choices(self) -> dict[str, str | float]:
        """Rank and alpha."""
        stored = self.adapter_config
        return {"alpha": float(stored.get("lora_alpha", self.alpha)), "rank": int(stored.get("r", self.rank))}

    def load_base(self, checkpoint: Checkpoint, precision: str) -> PreTrainedModel:
        """The frozen base."""
        return checkpoint.load_model(dtype=half_or_full(precision))

    def rate_factor(self, name: str) -> float:
        """B may learn faster than A."""
        return self.lora_plus_ratio if self.lora_plus_ratio and ".lora_B." in name else 1.0

    def causal_lm(self, model: Any) -> PreTrainedModel:
        """The network whose linear layers peft replaced in place."""
        network: PreTrainedModel = model.get_base_model()
        return network

    def base_of(self, model: Any) -> AbstractContextManager[Any]:
        """Without the adapter, which may be one to start from."""
        context: AbstractContextManager[Any] = model.disable_adapter()
        return context

    def save(self, model: Any, folder: Path, checkpoint: Checkpoint, weights: dict[str, Any] | None = None) -> None:
        """A PEFT folder that `peft.PeftModel.from_pretrained` opens on the loaded base."""
        model.peft_config["default"].base_model_name_or_path = str(checkpoint.path.resolve())
        # "auto" would ask the hub whether the vocabulary was resized.
        model.save_pretrained(folder, save_embedding_layers=False, state_dict=weights)


def _unless_autocast(x: Any, dtype: torch.dtype) -> Any:
    """Where autocast converts, it converts the small adapter; peft converts its input to float32, only to be undone."""
    import torch

    return x if x is None or torch.is_autocast_enabled(x.device.type) else x.to(dtype)


def _check_targets(model: PreTrainedModel, targets: list[str]) -> None:
    """Every target must name a linear layer; peft is content if one of them does."""
    import torch

    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            valid = {name.rpartition(".")[2] for name in names}
            raise ConfigError(f"LoRA target {target!r} matches no linear layer. {accepted(target, valid)}")
