"""Baichuan-7B and Baichuan2-7B (baichuan-inc, 2023): Llama but for names on disk and the head of the second.

Positions: rotary, half-split, base 10000. Mask: causal. Norm: RMSNorm (1e-6) before attention and feed-forward.
Activation: SwiGLU. Fused weights: `W_pack` of plain thirds. No biases.
The originals ignore the padding mask while they train, so padding on the left trains wrongly there, and rightly here.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from lit_sft.conversation import PromptFormat
from lit_sft.families.baichuan.family import OriginalConfig
from lit_sft.families.baichuan.llamafied import RotaryFamily
from lit_sft.families.baichuan.norm_head import NormHead, ZLoss, resized_norm_head
from lit_sft.families.baichuan.prompts import BaichuanChatFormat, HumanAssistantFormat
from lit_sft.families.shared.packed_rows import separate_packed


class BaiChuanConfig(OriginalConfig, LlamaConfig):
    """Llama's configuration under the original model type."""

    model_type = "baichuan"
    original_architecture = "BaiChuanForCausalLM"


class BaiChuanForCausalLM(LlamaForCausalLM):
    """Baichuan-7B: Llama that reads and writes the original tensor names."""

    config_class = BaiChuanConfig
    # Stored in half precision by the original, which never reads it.
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq$"]  # noqa: RUF012

    def __init__(self, config: BaiChuanConfig) -> None:
        super().__init__(config)
        separate_packed(self.model)


class Baichuan2RotaryConfig(BaiChuanConfig):
    """Llama's configuration and the weight of the z-loss."""

    original_architecture = "BaichuanForCausalLM"

    z_loss_weight: float = 0.0


class Baichuan2RotaryForCausalLM(LlamaForCausalLM):
    """Baichuan2-7B: Llama under a normalized head."""

    config_class = Baichuan2RotaryConfig

    def __init__(self, config: Baichuan2RotaryConfig) -> None:
        super().__init__(config)
        separate_packed(self.model)
        self.lm_head = NormHead(config.hidden_size, config.vocab_size)
        self.loss_function = ZLoss(config.z_loss_weight)
        self.post_init()

    def _get_resized_lm_head(self, *args: Any, **kwargs: Any) -> nn.Linear:
        return resized_norm_head(super()._get_resized_lm_head(*args, **kwargs))


class Baichuan7B(RotaryFamily):
    """Baichuan-7B, a base model.

    Rotary positions, causal, RMSNorm, SwiGLU, fused W_pack. On disk every layer carries a half-precision
    `rotary_emb.inv_freq` that nothing reads, and the architecture is spelt `BaiChuanForCausalLM`. The tokenizer is
    sentencepiece BPE with a dummy prefix, byte fallback and single digits, and adds no <s>.
    """

    name = "baichuan-7b"
    released: ClassVar = {
        "Baichuan-7B": {
            "model_type": "baichuan", "hidden_act": "silu", "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
            "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008,
            "vocab_size": 64000, "max_position_embeddings": 4096,
        }
    }  # fmt: skip
    network = BaiChuanForCausalLM
    config_class = BaiChuanConfig
    is_second_generation = False
    tiny_dtype = torch.float16

    @classmethod
    def tiny_weights(cls, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """With the frequencies that nothing reads."""
        weights = super().tiny_weights(model)
        frequencies = model.get_decoder().rotary_emb.inv_freq.to(cls.tiny_dtype)
        names = [name.replace("W_pack.weight", "rotary_emb.inv_freq") for name in weights if "W_pack" in name]
        return weights | {name: frequencies.clone() for name in names}

    def prompt_formats(self) -> dict[str, PromptFormat]:
        """The base model brings none of its own."""
        return {"human-assistant": HumanAssistantFormat(self.chat_limits())}


class Baichuan2_7B(RotaryFamily):  # noqa: N801 - Baichuan27B would be another number
    """Baichuan2-7B-Base and -Chat.

    Rotary positions, causal, RMSNorm, SwiGLU, fused W_pack; against Baichuan-7B a normalized head and a tokenizer of
    125,696 rows without dummy prefix.
    """

    name = "baichuan2-7b"
    network = Baichuan2RotaryForCausalLM
    config_class = Baichuan2RotaryConfig
    is_second_generation = True

    def prompt_formats(self) -> dict[str, PromptFormat]:
        """`chat`, `human-assistant`."""
        return {
            "chat": BaichuanChatFormat(self.chat_limits()),
            "human-assistant": HumanAssistantFormat(self.chat_limits(), reply_prefix=" "),
        }
