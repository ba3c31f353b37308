"""LoRA (Hu et al. 2021, arXiv:2106.09685): y = Wx + alpha/rank * B(Ax), W frozen, on peft; and what was built on it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_sft.checkpoint.opening import Checkpoint
from lit_sft.errors import ConfigError
from lit_sft.tuning._adapter_file import ALL_LINEAR, read_adapter_config
from lit_sft.tuning._base import Footprint, Tuning

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


DEFAULTS: dict[str, Any] = {
    "r": 16,
    "lora_alpha": 32.0,
    "lora_dropout": 0.0,
    "target_modules": None,
    "use_rslora": False,
    "use_dora": False,
}
"""Of a fresh adapter, under the names of adapter_config.json."""


class LoRA(Tuning):
    """Low-rank adapters in float32 beside a frozen base, which is in bfloat16 if the arithmetic is.

    Args:
        rank: Inner dimension of the adapters, 16 if not given.
        alpha: Numerator of their scale alpha / rank, 32 if not given.
        dropout: Probability with which an input of an adapter is dropped, 0 if not given.
        targets: Names of the linear layers to adapt; `all-linear`, or nothing, for all but the head.
        rslora: Scale by alpha / sqrt(rank), so that higher ranks learn as fast (Kalajdzievski 2023, arXiv:2312.03732).
        dora: Train the length of each row of W + BA apart from its direction (Liu et al. 2024, arXiv:2402.09353);
            slower, for each step computes the whole matrix.
        lora_plus_ratio: Learning rate of B as a multiple of that of A, 16 for example (LoRA+: Hayou et al. 2024,
            arXiv:2402.12354); the same if not given.
        adapter: A PEFT adapter folder to start from, also one of the original code with its fused modules. What is not
            given is read from it, and what contradicts it is refused, except `dropout`, which it leaves open.
    """

    export_name = "adapter"
    exports_adapter = True
    stands_on_base = True
    keeps_reference = True

    def __init__(
        self,
        rank: int | None = None,
        alpha: float | None = None,
        *,
        dropout: float | None = None,
        targets: list[str] | Literal["all-linear"] | None = None,
        rslora: bool | None = None,
        dora: bool | None = None,
        lora_plus_ratio: float | None = None,
        adapter: str | None = None,
    ) -> None:
        if rank is not None and rank < 1:
            raise ConfigError(f"LoRA rank is {rank}; it must be at least 1")
        if dropout is not None and not 0 <= dropout < 1:
            raise ConfigError(f"LoRA dropout is {dropout}; it must be at least 0 and below 1")
        if lora_plus_ratio is not None and lora_plus_ratio <= 0:
            raise ConfigError(f"LoRA lora_plus_ratio is {lora_plus_ratio}; it must be above 0")
        if targets == []:
            raise ConfigError("LoRA targets is empty; name linear layers, or leave it out for all but the head")
        stored = read_adapter_config(Path(adapter)) if adapter else {}
        given = {"r": rank, "lora_alpha": alpha, "target_modules": targets, "use_rslora": rslora, "use_dora": dora}
        if adapter:
            _refuse_contradictions(adapter, given, stored)
        chosen = {**DEFAULTS, **stored, **{key: value for key, value in given.items() if value is not None}}
        self.rank = int(chosen["r"])
        self.alpha = float(chosen["lora_alpha"])
        self.dropout = float(dropout if dropout is not None else chosen["lora_dropout"])
        # A pattern in place of names is peft's own way to say most layers.
        self.targets: list[str] | None = (
            chosen["target_modules"] if isinstance(chosen["target_modules"], list) else None
        )
        self.rslora = bool(chosen["use_rslora"])
        self.dora = bool(chosen["use_dora"])
        self.lora_plus_ratio = lora_plus_ratio
        self.adapter = adapter

    def check(self, checkpoint: Checkpoint) -> None:
        """Whether the adapter to start from fits the network, or each target names a linear layer of it."""
        if self.adapter:
            from lit_sft.tuning._adapter_loading import place_adapter

            place_adapter(Path(self.adapter), checkpoint)
        elif self.targets:
            from lit_sft.tuning._targets import check_targets

            check_targets(self._names(checkpoint.family.lora_targets), checkpoint.family.skeleton())

    def _names(self, family_targets: Sequence[str]) -> list[str]:
        """Of the layers to adapt. A family adapts all linear ones but the head by itself."""
        names = self.targets or [ALL_LINEAR]
        return [name for target in names for name in (family_targets if target == ALL_LINEAR else [target])]

    def load(self, checkpoint: Checkpoint, precision: str) -> PeftModel:
        """The base with adapters; a fresh adapter changes nothing until it has trained, for B is zero.

        peft makes adapters float32 beside half-precision weights: their updates are smaller than a step of bfloat16.
        """
        from lit_sft.tuning._switching import cast_inputs

        wrapped = self._wrap(checkpoint, precision)
        cast_inputs(wrapped)
        return wrapped

    def _wrap(self, checkpoint: Checkpoint, precision: str) -> PeftModel:
        from peft import LoraConfig, PeftModel, get_peft_model
        from peft.tuners.lora import LoraLayer

        from lit_sft.tuning._adapter_loading import place_adapter

        placed = place_adapter(Path(self.adapter), checkpoint) if self.adapter else None
        model = self.load_base(checkpoint, precision)
        if placed:
            placed.config.lora_dropout = self.dropout
            return placed.attach(model, is_trainable=True)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft computes with any number
            lora_dropout=self.dropout,
            target_modules=self._names(checkpoint.family.lora_targets),
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

    def footprint(self, family_targets: Sequence[str]) -> Footprint:
        """Adapters of its rank beside a base of the arithmetic's type."""
        targets = tuple(self._names(family_targets))
        return Footprint(rank=self.rank, targets=targets, dropout=self.dropout, dora=self.dora)

    def choices(self) -> dict[str, str | float]:
        """Rank and alpha."""
        return {"alpha": self.alpha, "rank": self.rank}

    def lr_multiplier(self, name: str) -> float:
        """B may learn faster than A."""
        return self.lora_plus_ratio if self.lora_plus_ratio and ".lora_B." in name else 1.0

    def causal_lm(self, model: Any) -> PreTrainedModel:
        """The network whose linear layers peft replaced in place."""
        network: PreTrainedModel = model.get_base_model()
        return network

    def base_of(self, model: Any) -> AbstractContextManager[Any]:
        """Without the adapter, which may be one to start from; only where no gradients are recorded."""
        from lit_sft.tuning._switching import using

        return using(model, None)

    def keep_reference(self, model: Any) -> None:
        """A frozen copy of the adapter to start from; a fresh adapter changes nothing, so that the base does."""
        if self.adapter:
            from lit_sft.tuning._switching import REFERENCE, add_copy

            add_copy(model, REFERENCE)

    def reference_of(self, model: Any) -> AbstractContextManager[Any]:
        """With the adapter to start from, or without any."""
        from lit_sft.tuning._switching import REFERENCE, using

        return using(model, REFERENCE if REFERENCE in model.peft_config else None)

    def add(
        self, model: Any, name: str, checkpoint: Checkpoint, *, folder: Path | None = None, is_trainable: bool = False
    ) -> None:
        """Of the rank and the layers of its own, or of the adapter in the folder."""
        from lit_sft.tuning._adapter_loading import place_adapter
        from lit_sft.tuning._switching import POLICY, add, add_copy

        if folder:
            place_adapter(folder, checkpoint).add_to(model, name, is_trainable=is_trainable)
        elif self.adapter:
            add_copy(model, name, is_trainable=is_trainable)
        else:
            add(model, name, model.peft_config[POLICY], is_trainable=is_trainable)

    def use(self, model: Any, name: str | None) -> None:
        """Nothing is frozen or thawed."""
        from lit_sft.tuning._switching import use

        use(model, name)

    def using(self, model: Any, name: str | None) -> AbstractContextManager[Any]:
        """Nothing is frozen or thawed."""
        from lit_sft.tuning._switching import using

        return using(model, name)

    def save(self, model: Any, folder: Path, checkpoint: Checkpoint, weights: dict[str, Any] | None = None) -> None:
        """A PEFT folder that `peft.PeftModel.from_pretrained` opens on the loaded base."""
        model.peft_config["default"].base_model_name_or_path = str(checkpoint.path.resolve())
        # "auto" would ask the hub whether the vocabulary was resized.
        model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False, state_dict=weights)


def _refuse_contradictions(adapter: str, given: dict[str, Any], stored: dict[str, Any]) -> None:
    """What an adapter was made with cannot be chosen anew; two answers to one question are a mistake in one of them."""
    options = {
        "r": "rank",
        "lora_alpha": "alpha",
        "target_modules": "targets",
        "use_rslora": "rslora",
        "use_dora": "dora",
    }
    for key, value in given.items():
        own = stored.get(key, DEFAULTS[key])
        if value is None or value == own or (isinstance(own, list) and set(own) == set(value)):
            continue
        option = options[key]
        raise ConfigError(
            f"LoRA {option} is {value}, but the adapter {adapter} has {own}. Leave {option} out, or give what the "
            "adapter has"
        )
