"""Baichuan with rotary positions, as released or LLaMA-fied.

Scripts that go around make a Llama of it: `W_pack` is split into q_proj, k_proj, v_proj, the rows of a normalized head
are written down normalized, and config.json says `model_type: llama`. Only the tokenizer still tells what it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lit_sft.families.baichuan.family import CONVERSIONS, BaichuanFamily, OriginalConfig, generation_of_tokenizer
from lit_sft.families.shared.packed_rows import separate_packed
from lit_sft.families.shared.sentencepiece import SentencePieceTokenizer
from lit_sft.families.shared.settings import read_object


class LlamafiedConfig(OriginalConfig, LlamaConfig):
    """Llama's configuration."""

    model_type = "llama"
    original_architecture = "LlamaForCausalLM"


class LlamafiedForCausalLM(LlamaForCausalLM):
    """A plain Llama, which is saved as one."""

    config_class = LlamafiedConfig

    forerunner_conversions = CONVERSIONS
    """How the weights were converted; adapters that were trained on `W_pack` are, too."""

    def __init__(self, config: LlamafiedConfig) -> None:
        super().__init__(config)
        separate_packed(self.model)


class RotaryFamily(BaichuanFamily):
    """A Baichuan with rotary positions; also as a Llama with the tokenizer of its generation."""

    has_rotary_positions = True

    @classmethod
    def matches_folder(cls, folder: Path, config: dict[str, Any]) -> bool:
        """A Llama with its tokenizer, too, unless it comes with a chat template of its own and a class to read it."""
        if config.get("model_type") != "llama":
            return super().matches_folder(folder, config)
        settings = read_object(folder / "tokenizer_config.json")
        is_baichuan = str(settings.get("tokenizer_class")).lower().startswith("baichuan")
        return (is_baichuan or not settings.get("chat_template")) and (
            generation_of_tokenizer(folder / "tokenizer.model") == cls.is_second_generation
        )

    @property
    def is_llamafied(self) -> bool:
        """Whether it is to be read as a Llama; without a normalized head both readings are the same."""
        is_named_so = self.is_second_generation and self.config.get("architectures") == ["LlamaForCausalLM"]
        return self.config.get("model_type") == "llama" or is_named_so

    @property
    def network_class(self) -> type[PreTrainedModel]:
        """That of the family, or a Llama."""
        return LlamafiedForCausalLM if self.is_llamafied else super().network_class

    def read_config(self) -> PreTrainedConfig:
        """That of the family, or a Llama's."""
        return LlamafiedConfig.from_dict(dict(self.config)) if self.is_llamafied else super().read_config()

    def native_config(self, config: Any) -> LlamaConfig:
        """Once W_pack is split, and the rows of a normalized head are, it is Llama."""
        others = ("model_type", "architectures", "z_loss_weight")
        return LlamaConfig(**{k: v for k, v in config.to_dict().items() if k not in others})

    def native_tokenizer(self) -> PreTrainedTokenizerBase:
        """The same Rust tokenizer, its decoder included."""
        tokenizer = self.load_tokenizer()
        assert isinstance(tokenizer, SentencePieceTokenizer)
        return tokenizer.plain()
