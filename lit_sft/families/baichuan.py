"""Baichuan-7B (baichuan-inc/Baichuan-7B, 2023).

The network is Llama to the bit: pre-norm blocks, half-split rotary positions (base 10000), RMSNorm (1e-6), SwiGLU.
On disk it differs in three ways: query, key and value are one matrix `W_pack` of plain thirds; every layer carries a
half-precision `rotary_emb.inv_freq` that the original never reads; the architecture is spelt `BaiChuanForCausalLM`.
The tokenizer is sentencepiece BPE with a dummy prefix, byte fallback and single digits, and adds no <s>.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, WeightConverter

from lit_sft.conversation import Conversation, EncodedTurn, PromptFormat
from lit_sft.families._base import Family, TinySize
from lit_sft.families._sentencepiece import SentencePieceTokenizer, train_model

RESERVED = r"<reserved_\d+>"
"""Pieces that chat models of the family use as role marks: no text may produce them."""

ATTENTION = "self_attn"


class BaiChuanConfig(LlamaConfig):
    """Llama's configuration under the original model type."""

    model_type = "baichuan"


class BaiChuanForCausalLM(LlamaForCausalLM):
    """Llama that reads and writes the original tensor names; named as in the original config.json."""

    config_class = BaiChuanConfig
    _keys_to_ignore_on_load_unexpected = (r"rotary_emb\.inv_freq$",)


register_checkpoint_conversion_mapping(
    BaiChuanForCausalLM.__name__,
    [
        WeightConverter(
            f"{ATTENTION}.W_pack.weight",
            [f"{ATTENTION}.q_proj.weight", f"{ATTENTION}.k_proj.weight", f"{ATTENTION}.v_proj.weight"],
            [Chunk(dim=0)],
        )
    ],
    overwrite=True,
)


class HumanAssistantFormat(PromptFormat):
    """`Human: ...\\n\\nAssistant: ...</s>`, the form in which BELLE tuned base models; Baichuan-7B brings none."""

    def encode_turns(self, conversation: Conversation, tokenizer: Any) -> list[EncodedTurn]:
        """A system message stands before the first `Human:`; the dummy prefix is the blank after `Assistant:`."""
        turns = []
        for read, answer in conversation.turns():
            system = "".join(f"{message.content}\n\n" for message in read if message.role == "system")
            asked = "\n".join(message.content for message in read if message.role != "system")
            prompt_ids = tokenizer.encode_text(f"{system}Human: {asked}\n\nAssistant:")
            reply_ids = [] if answer is None else [*tokenizer.encode_text(answer.content), tokenizer.eos_token_id]
            turns.append(EncodedTurn(prompt_ids, reply_ids))
        return turns

    def stop_token_ids(self, tokenizer: Any) -> list[int]:
        """Only </s>."""
        return [tokenizer.eos_token_id]


class Baichuan7B(Family):
    """Baichuan-7B, base model of seven billion parameters."""

    name = "baichuan-7b"
    lora_targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    tokenizer_file_names = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")

    @classmethod
    def matches(cls, config: dict[str, Any]) -> bool:
        """All Baichuans share the model type; only this one spells its architecture with a capital C."""
        return config.get("model_type") == "baichuan" and config.get("architectures") == ["BaiChuanForCausalLM"]

    @property
    def context_length(self) -> int:
        """The released model reads 4096 tokens."""
        return int(self.config["max_position_embeddings"])

    def prompt_formats(self) -> dict[str, PromptFormat]:
        """The base model brings none of its own."""
        return {"human-assistant": HumanAssistantFormat()}

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Ids and texts of the original slow tokenizer."""
        settings = json.loads((self.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        return SentencePieceTokenizer(
            str(self.folder / "tokenizer.model"),
            RESERVED,
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            padding_side="right",
            model_max_length=settings["model_max_length"],
            clean_up_tokenization_spaces=False,
            add_bos_token=settings.get("add_bos_token", False),
            add_eos_token=settings.get("add_eos_token", False),
        )

    def load_model(self, dtype: torch.dtype, quantization: Any = None) -> PreTrainedModel:
        """W_pack is split while it streams in."""
        config = BaiChuanConfig.from_pretrained(self.folder)
        # It names the remote code of the original, which a saved copy must not ask for.
        config.auto_map = None
        return BaiChuanForCausalLM.from_pretrained(
            self.folder, config=config, dtype=dtype, quantization_config=quantization, local_files_only=True
        )

    def native_config(self, config: Any) -> LlamaConfig:
        """Once W_pack is split it is Llama."""
        return LlamaConfig(**{k: v for k, v in config.to_dict().items() if k not in ("model_type", "architectures")})

    def native_tokenizer(self) -> PreTrainedTokenizerBase:
        """The same Rust tokenizer, its decoder included."""
        tokenizer = self.load_tokenizer()
        assert isinstance(tokenizer, SentencePieceTokenizer)
        return tokenizer.plain()

    @classmethod
    def write_tiny(cls, folder: Path, texts: Sequence[str], size: TinySize) -> None:
        """Half-precision pytorch_model.bin with the tensor names, configs and tokenizer files of the original."""
        symbols = ["\t", "\n", "，", "。", "？", "！", "：", *(f"<reserved_{i}>" for i in range(8))]
        train_model(
            folder / "tokenizer.model",
            # The marks of the prompt format stand in every example, so they deserve pieces of their own.
            [*texts, *["Human: ", "Assistant: "] * 100],
            vocab_size=size.vocab_size,
            symbols=symbols,
            add_dummy_prefix=True,
        )
        config = {
            "architectures": ["BaiChuanForCausalLM"],
            "model_type": "baichuan",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "hidden_act": "silu",
            "hidden_size": size.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": size.intermediate_size,
            "max_position_embeddings": size.context_length,
            "num_attention_heads": size.num_heads,
            "num_hidden_layers": size.num_layers,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "use_cache": True,
            "vocab_size": size.vocab_size,
        }
        token = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": True}
        special = {
            f"{role}_token": {"content": content, **token}
            for role, content in (("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>"))
        }
        tokenizer_config = {
            "add_bos_token": False,
            "add_eos_token": False,
            "model_max_length": size.context_length,
            "tokenizer_class": "BaiChuanTokenizer",
            **{role: {"__type": "AddedToken", **value} for role, value in special.items()},
        }
        generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        for name, content in (
            ("config.json", config),
            ("tokenizer_config.json", tokenizer_config),
            ("special_tokens_map.json", special),
            ("generation_config.json", generation),
        ):
            (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
        model = BaiChuanForCausalLM(BaiChuanConfig(**config))
        torch.save(original_state_dict(model), folder / "pytorch_model.bin")


def original_state_dict(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """The weights under the names and in the precision of the released pytorch_model.bin, `inv_freq` included."""
    state: dict[str, torch.Tensor] = {}
    for name, weight in model.state_dict().items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            continue
        if name.endswith("q_proj.weight"):
            attention = model.get_submodule(name.removesuffix(".q_proj.weight"))
            prefix = name.removesuffix("q_proj.weight")
            parts = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
            state[f"{prefix}W_pack.weight"] = torch.cat([part.detach() for part in parts]).half()
            state[f"{prefix}rotary_emb.inv_freq"] = model.model.rotary_emb.inv_freq.half()
        else:
            state[name] = weight.half()
    return state
