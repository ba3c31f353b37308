"""What ChatGLM2-6B and ChatGLM3-6B share: the network, the layout on disk, the tokenizer.

The network is transformers' GLM to the bit: pre-norm blocks with plain residuals, RMSNorm (1e-5), SwiGLU, rotary
positions on interleaved pairs of the first half of each head (base 10000 times `rope_ratio`), grouped queries, a bias
on query, key and value only, a causal mask, an output head of its own. Where the files differ from Llama's: query, key
and value are one matrix (all queries, then the key groups, then the value groups), gate and up projection are another,
config.json has key names of its own, and every checkpoint carries a `rotary_pos_emb.inv_freq` that is never read.
"""

from __future__ import annotations

import copy
import json
import re
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import GlmConfig, GlmForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Split, WeightConverter, WeightRenaming

from lit_sft.errors import CheckpointError
from lit_sft.families._base import Family, TinySize
from lit_sft.families.glm2.tokenizer import CONTROLS, Glm2Tokenizer
from lit_sft.families.shared.added_tokens import read_added_tokens
from lit_sft.families.shared.packed_rows import separate_packed
from lit_sft.families.shared.sentencepiece import train_model
from lit_sft.families.shared.settings import read_object, setting

RENAMED = {
    "model.embed_tokens": "transformer.embedding.word_embeddings",
    "model.norm": "transformer.encoder.final_layernorm",
    "lm_head": "transformer.output_layer",
    "model.layers": "transformer.encoder.layers",
    "self_attn.o_proj": "self_attention.dense",
    "mlp.gate_up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
}
"""Names here and in the original weights."""

FIXED = {
    "multi_query_attention": True,
    "rmsnorm": True,
    "original_rope": True,
    "post_layer_norm": True,
    "add_bias_linear": False,
    "apply_residual_connection_post_layernorm": False,
}
"""Keys of config.json that have this value in every release; another one is another network."""


class ChatGLM2Config(PreTrainedConfig):
    """The keys of the original config.json, which transformers' GLM reads under the names it expects."""

    model_type = "chatglm"
    attribute_map: ClassVar[dict[str, str]] = {
        "vocab_size": "padded_vocab_size",
        "intermediate_size": "ffn_hidden_size",
        "num_hidden_layers": "num_layers",
        "num_key_value_heads": "multi_query_group_num",
        "head_dim": "kv_channels",
        "max_position_embeddings": "seq_length",
        "rms_norm_eps": "layernorm_epsilon",
        "attention_bias": "add_qkv_bias",
    }
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    padded_vocab_size: int = 65024
    hidden_size: int = 4096
    ffn_hidden_size: int = 13696
    num_layers: int = 28
    num_attention_heads: int = 32
    multi_query_attention: bool = True
    multi_query_group_num: int = 2
    kv_channels: int = 128
    seq_length: int = 2048
    layernorm_epsilon: float = 1e-5
    add_qkv_bias: bool = True
    attention_dropout: float | int = 0.0
    rope_ratio: float | int = 1.0
    hidden_act: str = "silu"
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | None = 2
    pad_token_id: int | None = 0
    rope_parameters: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.rope_parameters = {
            "rope_type": "default",
            "rope_theta": 10000.0 * self.rope_ratio,
            "partial_rotary_factor": 0.5,
        }
        super().__post_init__(**kwargs, partial_rotary_factor=0.5)

    def to_dict(self) -> dict[str, Any]:
        """Only what the original knows: the rotary parameters follow from `rope_ratio`."""
        content: dict[str, Any] = super().to_dict()
        content.pop("rope_parameters", None)
        return content


class ChatGLM2ForCausalLM(GlmForCausalLM):
    """transformers' GLM that reads and writes the original names of weights and configuration."""

    config: ChatGLM2Config  # type: ignore[assignment]  # not a GlmConfig, but read like one
    config_class = ChatGLM2Config
    _keys_to_ignore_on_load_unexpected = (r"rotary_pos_emb\.inv_freq$",)  # type: ignore[assignment]  # only read

    def __init__(self, config: ChatGLM2Config) -> None:
        super().__init__(config)  # type: ignore[arg-type]
        separate_packed(self.model)
        # The padding token is also <unk>; the original trains its row like any other.
        self.model.embed_tokens.padding_idx = None


def register_weights(network: type[ChatGLM2ForCausalLM]) -> None:
    """Have transformers convert the original weights of `network` while they stream in and out."""
    attention = "self_attention.query_key_value"
    parts = [f"self_attn.{part}_proj" for part in "qkv"]
    register_checkpoint_conversion_mapping(
        network.__name__,
        [
            *(WeightRenaming(original, here) for here, original in RENAMED.items()),
            *(
                WeightConverter(f"{attention}.{kind}", [f"{part}.{kind}" for part in parts], [Split(dim=0)])
                for kind in ("weight", "bias")
            ),
        ],
        overwrite=True,
    )


register_weights(ChatGLM2ForCausalLM)


class Glm2Family(Family):
    """Opening, loading and writing of folders in the layout of ChatGLM2-6B."""

    version: ClassVar[str]
    """Digit in the model's name."""
    network: ClassVar[type[ChatGLM2ForCausalLM]]
    config_class = ChatGLM2Config
    size_keys = (
        *("padded_vocab_size", "hidden_size", "ffn_hidden_size", "num_layers", "num_attention_heads", "kv_channels"),
        "multi_query_group_num",
    )
    prefix_input = "states"
    roles: ClassVar[tuple[str, ...]] = ()
    lora_targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")
    tokenizer_file_names = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

    def __init__(self, folder: Path, config: dict[str, Any], prompt_format: str | None = None) -> None:
        _refuse_relatives(folder, config)
        super().__init__(folder, config, prompt_format)

    @classmethod
    def matches(cls, config: dict[str, Any]) -> bool:
        """By keys that only this layout has; the version by the model's name, else by the released context length."""
        return _has_layout(config) and cls.version in _versions(config, [])

    @classmethod
    def matches_folder(cls, folder: Path, config: dict[str, Any]) -> bool:
        """As `matches`, with the name in tokenizer_config.json, for copies whose config.json lost it.

        Raises:
            CheckpointError: If the folder holds a relative that is not supported.
        """
        if not _has_layout(config):
            return False
        _refuse_relatives(folder, config)
        return cls.version in _versions(config, [read_object(folder / "tokenizer_config.json").get("name_or_path")])

    @property
    def context_length(self) -> int:
        """ChatGLM2-6B reads 32768 tokens, ChatGLM3-6B 8192."""
        if self.config.get("seq_length") is None:
            raise CheckpointError(f"{self.folder / 'config.json'} has no seq_length, so it is not of {self.name}")
        return int(self.config["seq_length"])

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Ids and texts of the original slow tokenizer."""
        file = self.folder / "tokenizer_config.json"
        settings = read_object(file)
        return Glm2Tokenizer(
            str(self.folder / "tokenizer.model"),
            roles=self.roles,
            added=read_added_tokens(self.folder),
            has_named_controls=bool(self.roles),
            encode_special_tokens=bool(self.roles) and setting(file, settings, "encode_special_tokens", bool, False),
            model_max_length=setting(file, settings, "model_max_length", float, self.context_length),
        )

    def load_model(self, dtype: torch.dtype, quantization: Any = None) -> PreTrainedModel:
        """query_key_value is split while it streams in."""
        return self.network.from_pretrained(
            self.folder,
            config=self.network_config,
            dtype=dtype,
            quantization_config=quantization,
            local_files_only=True,
        )

    def native_config(self, config: Any) -> GlmConfig:
        """Transformers' GLM, under the names that it has for the sizes."""
        same = (
            "hidden_size",
            "num_attention_heads",
            "attention_dropout",
            "hidden_act",
            "initializer_range",
            "use_cache",
        )
        special = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "rope_parameters")
        names = (*ChatGLM2Config.attribute_map, *same, *special)
        return GlmConfig(**{name: getattr(config, name) for name in names})

    def native_tokenizer(self) -> PreTrainedTokenizerBase:
        """The same Rust tokenizer, [gMASK] sop before every text; it writes no names of control tokens."""
        tokenizer = self.load_tokenizer()
        assert isinstance(tokenizer, Glm2Tokenizer)
        return tokenizer.plain()

    @classmethod
    @abstractmethod
    def tiny_config(cls) -> dict[str, Any]:
        """What the original config.json of this version has beside the sizes."""

    def build(self) -> PreTrainedModel:
        """Random weights."""
        config: Any = copy.deepcopy(self.network_config)
        return self.network(config)

    @classmethod
    def write_tiny(cls, folder: Path, texts: Sequence[str], size: TinySize) -> None:
        """Half-precision pytorch_model.bin with the tensor names, configs and tokenizer of the original."""
        train_model(
            folder / "tokenizer.model",
            # The marks of the prompt format stand in every example, so they deserve pieces of their own.
            [*texts, *["[Round 1]\n\n问：", "\n\n答："] * 100],
            vocab_size=size.vocab_size - len(CONTROLS) - len(cls.roles),
            symbols=[],
            add_dummy_prefix=True,
        )
        config = {**_tiny_config(size), **cls.tiny_config()}
        tokenizer_config = {"name_or_path": config["_name_or_path"], "tokenizer_class": "ChatGLMTokenizer"}
        for name, content in (("config.json", config), ("tokenizer_config.json", tokenizer_config)):
            (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
        model = cls.network(ChatGLM2Config(**config))
        torch.save(original_state_dict(model), folder / "pytorch_model.bin")


def _has_layout(config: dict[str, Any]) -> bool:
    """Never by model_type or architectures: ChatGLM-6B and GLM-4 have the same."""
    return any(key in config for key in ("padded_vocab_size", "ffn_hidden_size", "multi_query_group_num"))


def _versions(config: dict[str, Any], names: Sequence[Any]) -> set[str]:
    """Versions that the folder may hold: weights, configs and tokenizers of both are alike but for these hints."""
    said = " ".join(map(str, (config.get("_name_or_path"), config.get("architectures"), *names)))
    named = set(re.findall(r"(?:chatglm|codegeex)([23])", said.lower()))
    if named:
        return named
    # Longer variants of version 3 have the context of version 2, but say so by a rope_ratio.
    if config.get("seq_length") == 32768 and config.get("rope_ratio", 1) == 1:
        return {"2"}
    # CodeGeeX2-6B, of version 2, has the context of version 3, but in bfloat16.
    if config.get("seq_length") == 8192 and "bfloat16" not in (config.get("torch_dtype"), config.get("dtype")):
        return {"3"}
    return {"2", "3"}


def _refuse_relatives(folder: Path, config: dict[str, Any]) -> None:
    """A short error for models that share the layout and much of the config, but not the network or its files."""
    file = folder / "config.json"
    is_glm4 = (
        config.get("padded_vocab_size") == 151552
        or isinstance(config.get("eos_token_id"), list)
        or read_object(folder / "tokenizer_config.json").get("tokenizer_class") == "ChatGLM4Tokenizer"
    )
    if "vision_config" in config:
        raise CheckpointError(f"{file} is of GLM-4V, which sees images (key vision_config); it is not supported")
    if is_glm4:
        raise CheckpointError(
            f"{file} is of GLM-4 with remote code; it is not supported. Take its transformers edition (glm-4-9b-hf)"
        )
    if config.get("quantization_bit"):
        raise CheckpointError(
            f"{file} says quantization_bit {config['quantization_bit']}: the weights are stored as integers of the "
            "original kernels. Take the half-precision release; QLoRA quantizes it while loading"
        )
    if config.get("pre_seq_len"):
        raise CheckpointError(
            f"{file} has pre_seq_len: a P-Tuning prefix, not a model. Take the model it was made for, and "
            "give this folder as adapter (chat --adapter, or the option of PTuning)"
        )
    for key, value in FIXED.items():
        if config.get(key, value) != value:
            raise CheckpointError(
                f"{file} says {key} {json.dumps(config[key])}, which no release of ChatGLM2-6B or ChatGLM3-6B does "
                f"({json.dumps(value)}); this network is not supported"
            )


def _tiny_config(size: TinySize) -> dict[str, Any]:
    """Sizes in the original config.json; the rotary half of a head must be even."""
    return {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        **FIXED,
        "add_qkv_bias": True,
        "apply_query_key_layer_scaling": True,
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "eos_token_id": 2,
        "ffn_hidden_size": size.intermediate_size,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "hidden_size": size.hidden_size,
        "kv_channels": -(-size.hidden_size // size.num_heads // 4) * 4,
        "layernorm_epsilon": 1e-5,
        "multi_query_group_num": 1 if size.num_heads % 2 else 2,
        "num_attention_heads": size.num_heads,
        "num_layers": size.num_layers,
        "pad_token_id": 0,
        "padded_vocab_size": size.vocab_size,
        "seq_length": size.context_length,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_cache": True,
    }


def original_state_dict(model: ChatGLM2ForCausalLM) -> dict[str, torch.Tensor]:
    """The weights under the names and in the precision of the released files, `inv_freq` included."""
    state = {"transformer.rotary_pos_emb.inv_freq": model.model.rotary_emb.inv_freq.half()}
    weights = model.state_dict()
    for name, weight in weights.items():
        original = name.replace("self_attn.q_proj", "self_attention.query_key_value")
        for here, there in RENAMED.items():
            original = original.replace(here, there)
        if "q_proj" in name:
            weight = torch.cat([weights[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
        if not ("k_proj" in name or "v_proj" in name):
            state[original] = weight.half()
    return state
