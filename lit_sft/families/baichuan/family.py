"""What the four Baichuan models share: on-disk layout, tokenizer, detection, tiny checkpoints."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming

from lit_sft.errors import CheckpointError
from lit_sft.families._base import Family, TinySize
from lit_sft.families.baichuan.prompts import ChatLimits
from lit_sft.families.shared.added_tokens import read_added_tokens
from lit_sft.families.shared.sentencepiece import SentencePieceTokenizer, train_model
from lit_sft.families.shared.sentencepiece_file import open_processor, read_model
from lit_sft.families.shared.settings import read_object, setting, token_setting
from lit_sft.families.shared.tokenizer_data import TokenizerData, sentencepiece_data

RESERVED = r"<reserved_\d+>"
"""Pieces that chat models use as role marks: no text may produce them."""

FIRST_GENERATION_VOCABULARY = 64000
SECOND_GENERATION_VOCABULARY = 125696

FIRST_ROLE_MARK = 195
"""Id of the user's mark; the assistant's is the next."""

DEFAULT_NEW_TOKENS = 2048
"""`max_new_tokens` of the released chat models, for folders whose generation_config.json names none."""

PARTS = ("q_proj", "k_proj", "v_proj")

# The fused weight holds plain thirds. Saving joins them again, so files keep the original names.
CONVERSIONS: list[WeightConverter | WeightRenaming] = [
    WeightConverter("self_attn.W_pack.weight", [f"self_attn.{part}.weight" for part in PARTS], [Chunk(dim=0)])
]
register_checkpoint_conversion_mapping("baichuan", CONVERSIONS, overwrite=True)


class OriginalConfig(PreTrainedConfig):
    """A configuration that is saved under the original architecture, whatever our class is called."""

    original_architecture: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """The keys of config.json."""
        content: dict[str, Any] = super().to_dict()
        return content | {"architectures": [self.original_architecture]}


class BaichuanFamily(Family):
    """A Baichuan model; subclasses say which.

    All share the model type, so detection asks two questions. Rotary positions: config.json has the key
    `max_position_embeddings`; the ALiBi models have only `model_max_length`. Second generation: see
    `may_be_generation` and, where config.json does not answer, `generation_of_tokenizer`. Where nothing answers, both
    candidates match and the user must choose.
    """

    lora_targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    tokenizer_file_names = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

    network: ClassVar[type[PreTrainedModel]]
    config_class: ClassVar[type[OriginalConfig]]
    is_second_generation: ClassVar[bool]
    has_rotary_positions: ClassVar[bool]
    size_keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    num_tiny_shards: ClassVar[int] = 1
    tiny_dtype: ClassVar[torch.dtype] = torch.bfloat16

    @classmethod
    def matches(cls, config: dict[str, Any]) -> bool:
        """Whether nothing in config.json speaks against this model."""
        return (
            config.get("model_type") == "baichuan"
            and ("max_position_embeddings" in config) == cls.has_rotary_positions
            and may_be_generation(config, second=cls.is_second_generation)
        )

    @classmethod
    def matches_folder(cls, folder: Path, config: dict[str, Any]) -> bool:
        """Where config.json leaves the generation open, the name of the role mark in the tokenizer tells it."""
        if not cls.matches(config):
            return False
        is_open = all(may_be_generation(config, second=second) for second in (False, True))
        told = generation_of_tokenizer(folder / "tokenizer.model") if is_open else None
        return told is None or told == cls.is_second_generation

    @property
    def network_class(self) -> type[PreTrainedModel]:
        """What the weights of the folder are loaded into."""
        return self.network

    @property
    def context_length(self) -> int:
        """The released models read 4096 tokens."""
        key = "max_position_embeddings" if self.has_rotary_positions else "model_max_length"
        self._required(key)
        return setting(self.folder / "config.json", self.config, key, int, 0)

    @property
    def z_loss_weight(self) -> float:
        """What config.json of a Baichuan 2 says: 0 in all released ones."""
        return float(self.config.get("z_loss_weight", 0)) if self.is_second_generation else 0.0

    def plain_head(self, rows: torch.Tensor) -> torch.Tensor:
        """Baichuan 2 divides by their lengths."""
        return F.normalize(rows.float(), dim=1) if self.is_second_generation else rows

    def chat_limits(self) -> ChatLimits:
        """Role marks and lengths of the chat formats, which base models lack: then those of the chat models."""
        file = self.folder / "generation_config.json"
        generation = read_object(file)
        context_length = setting(self.folder / "config.json", self.config, "model_max_length", int, self.context_length)
        max_new_tokens = setting(file, generation, "max_new_tokens", int, 0)
        return ChatLimits(
            user_token_id=setting(file, generation, "user_token_id", int, FIRST_ROLE_MARK),
            assistant_token_id=setting(file, generation, "assistant_token_id", int, FIRST_ROLE_MARK + 1),
            context_length=context_length,
            max_new_tokens=max_new_tokens or min(DEFAULT_NEW_TOKENS, context_length // 2),
        )

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Ids and texts of the original slow tokenizer; it adds no <s>."""
        file = self.folder / "tokenizer_config.json"
        settings = read_object(file)
        roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": ""}
        special = {role: token_setting(file, settings, role, default) for role, default in roles.items()}
        return SentencePieceTokenizer(
            str(self.folder / "tokenizer.model"),
            RESERVED,
            added=read_added_tokens(self.folder),
            **{role: token for role, token in special.items() if token},
            padding_side=setting(file, settings, "padding_side", str, "right"),
            model_max_length=setting(file, settings, "model_max_length", float, self.context_length),
            clean_up_tokenization_spaces=False,
            add_bos_token=setting(file, settings, "add_bos_token", bool, False),
            add_eos_token=setting(file, settings, "add_eos_token", bool, False),
        )

    def tokenizer_data(self, tokenizer: Any) -> TokenizerData:
        """Reserved pieces are control pieces there."""
        model = Path(tokenizer.model_file).read_bytes()
        pieces = {index: piece.text for index, piece in enumerate(read_model(model).pieces)}
        reserved = {index: text for index, text in pieces.items() if re.fullmatch(RESERVED, text)}
        special = {index for index, token in tokenizer.added.items() if token.special}
        return sentencepiece_data(
            model,
            controls=reserved,
            texts=reserved,
            skipped={*tokenizer.all_special_ids, *special},
            added=tokenizer.added,
        )

    def load_model(self, dtype: torch.dtype, quantization: Any = None) -> PreTrainedModel:
        """W_pack is split while it streams in."""
        return self.network_class.from_pretrained(
            self.folder,
            config=self.network_config,
            dtype=dtype,
            quantization_config=quantization,
            local_files_only=True,
        )

    def build(self) -> PreTrainedModel:
        """Random weights."""
        return self.network_class(copy.deepcopy(self.network_config))

    @classmethod
    def write_tiny(cls, folder: Path, texts: Sequence[str], size: TinySize) -> None:
        """pytorch_model.bin, in shards where the original has them, with its names, type, configs and tokenizer."""
        write_tiny_tokenizer(folder, texts, size, is_second_generation=cls.is_second_generation)
        config = cls.tiny_config(size)
        is_first_7b = cls.has_rotary_positions and not cls.is_second_generation
        special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        chat = {
            "user_token_id": FIRST_ROLE_MARK,
            "assistant_token_id": FIRST_ROLE_MARK + 1,
            "max_new_tokens": size.context_length // 2,
        }
        _write_json(folder / "config.json", config)
        _write_json(folder / "generation_config.json", special if is_first_7b else special | chat)
        model = cls.network(cls.config_class(**config))
        save_shards(folder, cls.tiny_weights(model), cls.num_tiny_shards)

    @classmethod
    def tiny_weights(cls, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """What the released files hold."""
        return original_state_dict(model, cls.tiny_dtype)

    @classmethod
    def tiny_config(cls, size: TinySize) -> dict[str, Any]:
        """config.json in the words of the original."""
        lengths = {"model_max_length": size.context_length}
        if cls.has_rotary_positions:
            rotary = {"max_position_embeddings": size.context_length}
            lengths = lengths | rotary if cls.is_second_generation else rotary
        second = {"tokenizer_class": "BaichuanTokenizer", "z_loss_weight": 0} if cls.is_second_generation else {}
        return {
            "architectures": [cls.config_class.original_architecture],
            "model_type": "baichuan",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "hidden_act": "silu",
            "hidden_size": size.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": size.intermediate_size,
            **lengths,
            "num_attention_heads": size.num_heads,
            "num_hidden_layers": size.num_layers,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "torch_dtype": str(cls.tiny_dtype).removeprefix("torch."),
            "use_cache": True,
            "vocab_size": size.vocab_size,
            **second,
        }

    def _required(self, key: str) -> Any:
        if self.config.get(key) is None:
            raise CheckpointError(
                f"{self.folder / 'config.json'} has no {key!r}, so it is not of family {self.name}. "
                f"Correct `family:`, or leave it at auto"
            )
        return self.config[key]


def may_be_generation(config: dict[str, Any], *, second: bool) -> bool:
    """Whether a config.json may be of the first, or of the `second`, generation; both if signs are missing or differ.

    Only Baichuan-7B spells its architecture with a capital C, and of the models with rotary positions only
    Baichuan2-7B does not. Released vocabularies have 64,000 and 125,696 rows. config.json of Baichuan 2 names a
    `tokenizer_class` and (the 7B) a `z_loss_weight`, which the first generation never does. That a key is missing is
    not a sign: tools drop keys, and a normalized head taken for a plain one would give nonsense without an error.
    """
    if config.get("architectures") == ["BaiChuanForCausalLM"]:
        return not second
    is_second = (
        config.get("vocab_size") == SECOND_GENERATION_VOCABULARY
        or "z_loss_weight" in config
        or "tokenizer_class" in config
        or ("max_position_embeddings" in config and config.get("architectures") == ["BaichuanForCausalLM"])
    )
    is_first = config.get("vocab_size") == FIRST_GENERATION_VOCABULARY
    if is_first == is_second:
        return True
    return is_second == second


def generation_of_tokenizer(file: Path) -> bool | None:
    """Whether a tokenizer is of the second generation: its piece 195 is <reserved_106>, of the first <reserved_102>.

    None if it is neither, or no tokenizer.
    """
    try:
        processor = open_processor(file.read_bytes())
    except (OSError, RuntimeError):
        return None
    mark = processor.id_to_piece(FIRST_ROLE_MARK) if processor.vocab_size() > FIRST_ROLE_MARK else ""
    return {"<reserved_102>": False, "<reserved_106>": True}.get(mark)


def write_tiny_tokenizer(folder: Path, texts: Sequence[str], size: TinySize, *, is_second_generation: bool) -> None:
    """A tokenizer with the role marks at their ids and the settings of the generation."""
    first_mark = 106 if is_second_generation else 102
    # Ids 0 to 2 are control tokens; single characters fill the rest up to the reserved pieces.
    num_characters = FIRST_ROLE_MARK - first_mark - 3
    characters = ["\t", "\n", "。", *map(chr, range(0xFF01, 0xFF01 + num_characters - 3))]
    train_model(
        folder / "tokenizer.model",
        # The marks of the plain prompt format stand in every example, so they deserve pieces of their own.
        [*texts, *["Human: ", "Assistant: "] * 100],
        vocab_size=size.vocab_size,
        symbols=[*characters, *(f"<reserved_{index}>" for index in range(first_mark + 4))],
        add_dummy_prefix=not is_second_generation,
    )
    token = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": True}
    special = {
        f"{role}_token": {"content": content, **token}
        for role, content in (("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>"), ("pad", "<unk>"))
    }
    settings = {
        "add_bos_token": False,
        "add_eos_token": False,
        "model_max_length": size.context_length,
        "tokenizer_class": "BaichuanTokenizer",
        **{role: {"__type": "AddedToken", **value} for role, value in special.items()},
    }
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(folder / "tokenizer_config.json", settings)


def original_state_dict(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights under the names of the released files."""
    weights = {name: weight.to(dtype) for name, weight in model.state_dict().items()}
    state: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if "q_proj" in name:
            fused = [weights[name.replace("q_proj", part)] for part in PARTS]
            state[name.replace("q_proj", "W_pack")] = torch.cat(fused)
        elif not any(part in name for part in PARTS):
            state[name] = weight
    return state


def save_shards(folder: Path, state: dict[str, torch.Tensor], num_shards: int) -> None:
    """pytorch_model.bin, or as many shards with about the same number of tensors and an index."""
    if num_shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return
    names = list(state)
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        file = f"pytorch_model-{shard + 1:05d}-of-{num_shards:05d}.bin"
        chosen = names[shard * len(names) // num_shards : (shard + 1) * len(names) // num_shards]
        torch.save({name: state[name] for name in chosen}, folder / file)
        weight_map |= dict.fromkeys(chosen, file)
    total = sum(weight.nbytes for weight in state.values())
    _write_json(folder / "pytorch_model.bin.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
