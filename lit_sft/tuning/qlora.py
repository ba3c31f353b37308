"""QLoRA (Dettmers et al. 2023, arXiv:2305.14314): LoRA beside a base in 4 bits, on bitsandbytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from lit_sft.checkpoint.opening import Checkpoint
from lit_sft.errors import ConfigError
from lit_sft.tuning._base import Footprint, half_or_full
from lit_sft.tuning.lora import LoRA

if TYPE_CHECKING:
    from transformers import PreTrainedModel


BLOCK_SIZE = 64
"""4-bit weights that share a scale; 256 scales share one of their own under double quantization."""


class QLoRA(LoRA):
    """Low-rank adapters in float32 beside a frozen base that is quantized while it loads; the head stays as it is.

    Args:
        quant_type: `nf4` or `fp4`: 4 bits with block-wise scales; `int8`: 8 bits with row-wise scales (LLM.int8()).
        double_quant: Quantize the scales of the 4-bit types too: 0.4 bits a parameter less.
        kwargs: What LoRA takes.
    """

    quantizes_base = True

    def __init__(
        self, quant_type: Literal["nf4", "fp4", "int8"] = "nf4", double_quant: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.quant_type = quant_type
        self.double_quant = double_quant
        if quant_type == "int8" and self.dora:
            raise ConfigError(
                "QLoRA dora does not work on int8: peft loses the scales of an int8 layer when it computes the lengths "
                "of its rows. Use quant_type nf4, or dora: false"
            )

    def footprint(self, family_targets: Sequence[str]) -> Footprint:
        """Linear layers in 4 or 8 bits, with their scales."""
        found = super().footprint(family_targets)
        if self.quant_type == "int8":
            return replace(found, packed_bytes=1.0, row_scale_bytes=4.0)
        return replace(found, packed_bytes=0.5, scale_bytes=(1 + 4 / 256 if self.double_quant else 4) / BLOCK_SIZE)

    def choices(self) -> dict[str, str | float]:
        """Rank and alpha, and the type of the base."""
        return {**super().choices(), "kind": self.quant_type}

    def quantization(self) -> dict[str, Any]:
        """What a quantized base depends on."""
        return {"quant_type": self.quant_type, "double_quant": self.double_quant}

    def why_not_sharded(self) -> str | None:
        """Int8 layers keep their weight a second time, beside what is sharded."""
        if self.quant_type != "int8":
            return None
        return "QLoRA int8 keeps every weight whole beside the sharded one: use quant_type nf4, or strategy ddp"

    def why_not_compiled(self) -> str | None:
        """Int8 layers take their scales over from the weight when they first compute: torch.compile skips them."""
        if self.quant_type != "int8":
            return None
        return "QLoRA int8 changes its layers while they compute: use quant_type nf4, or compile: false"

    def load_base(self, checkpoint: Checkpoint, precision: str) -> PreTrainedModel:
        """The base in 4 or 8 bits, computed with in bfloat16 unless the run is in float32."""
        from transformers import BitsAndBytesConfig

        dtype = half_or_full(precision)
        if self.quant_type == "int8":
            quantization = BitsAndBytesConfig(load_in_8bit=True)
        else:
            quantization = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=self.quant_type,
                bnb_4bit_use_double_quant=self.double_quant,
                bnb_4bit_compute_dtype=dtype,
            )
        return _in_one_layout(checkpoint.load_model(dtype=dtype, quantization=quantization))


def _in_one_layout(network: PreTrainedModel) -> PreTrainedModel:
    """Keep 4-bit weights as they are.

    On a CPU with AVX512-BF16 bitsandbytes rearranges them when they first compute without a gradient, as in a
    validation, and there is no way back: no gradient passes through them in the training that follows.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in network.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return network
