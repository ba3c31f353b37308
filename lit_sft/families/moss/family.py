"""MOSS-moon-003 (OpenLMLab/MOSS, Fudan University, 2023)."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from lit_sft.conversation import PromptFormat
from lit_sft.errors import CheckpointError, ConfigError
from lit_sft.families._base import Family, TinySize
from lit_sft.families.moss.network import NUM_BLOCKS, MossConfig, MossForCausalLM
from lit_sft.families.moss.prompts import META_INSTRUCTION, MossFormat
from lit_sft.families.moss.tokenizer import END_OF_TEXT, FIELD_ENDS, FILES, field_ends, load_moss_tokenizer
from lit_sft.families.shared.settings import setting

WHITESPACE_RUNS = [" " * length for length in range(31, 1, -1)] + ["\t" * length for length in range(9, 1, -1)]


class Moss(Family):
    """MOSS-moon-003: base, sft and sft-plugin, sixteen billion parameters.

    Positions: rotary on the first `rotary_dim` dimensions of a head, neighboring pairs turned (GPT-J), base 10000.
    Mask: causal. Norm: LayerNorm with bias, one for each block. Activation: gelu_new, no gate.
    Fused weights: `qkv_proj` in four blocks of query, value, key each; split while it streams in, fused on saving.
    Unlike Llama: attention and feed-forward side by side, biases in the feed-forward layer and the head,
    more rows in the embedding than tokens (never resize it down).
    """

    name = "moss"
    released: ClassVar = {
        "moss-moon-003-base": {
            "model_type": "moss", "n_embd": 6144, "n_layer": 34, "n_head": 24, "n_inner": None, "rotary_dim": 64,
            "n_positions": 2048, "n_ctx": 2048, "vocab_size": 107008, "tie_word_embeddings": False,
        }
    }  # fmt: skip
    config_class = MossConfig
    size_keys = ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions")
    lora_targets = ("q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out")
    tokenizer_file_names = FILES

    @classmethod
    def matches(cls, config: dict[str, Any]) -> bool:
        """No other model bears the type."""
        return config.get("model_type") == "moss"

    @property
    def context_length(self) -> int:
        """The released models read 2048 tokens."""
        if self.config.get("n_positions") is None:
            raise CheckpointError(f"{self.folder / 'config.json'} has no n_positions, so it is not of family moss")
        return int(self.config["n_positions"])

    def prompt_formats(self) -> dict[str, PromptFormat]:
        """`moss-original-loss` writes what `moss` does, and trains on human turns too."""
        return {
            "moss": MossFormat(),
            "moss-plugins": MossFormat(has_fields_in_every_turn=True),
            "moss-original-loss": MossFormat(has_original_loss=True),
        }

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Ids and texts of the original slow tokenizer."""
        return load_moss_tokenizer(self.folder)

    def load_model(self, dtype: torch.dtype, quantization: Any = None) -> PreTrainedModel:
        """The fused projection is split while it streams in; generation ends at <eom> or the checkpoint's own end.

        Raises:
            CheckpointError: If the weights are in the 4- or 8-bit format of the original, or cannot be split.
        """
        self._check_config()
        config = self.network_config
        model = MossForCausalLM.from_pretrained(
            self.folder, config=config, dtype=dtype, quantization_config=quantization, local_files_only=True
        )
        self._set_ends(model.generation_config, config.eos_token_id)
        return model

    def _set_ends(self, generation: GenerationConfig, eos_token_id: int | list[int] | None) -> None:
        file = self.folder / "added_tokens.json"
        if not file.is_file():
            # A network saved alone: its generation_config.json, or else its config.json, says where answers end.
            ends = generation.eos_token_id
            if generation.pad_token_id is None:
                generation.pad_token_id = ends[0] if isinstance(ends, list) else ends
            return
        end_of_answer = field_ends(self.folder)["<eom>"]
        own = eos_token_id if isinstance(eos_token_id, list) else [eos_token_id or end_of_answer]
        ends = list(dict.fromkeys([end_of_answer, *own]))
        generation.eos_token_id = ends if len(ends) > 1 else end_of_answer
        generation.pad_token_id = end_of_answer

    def _check_config(self) -> None:
        self.check_sizes()
        file, config = self.folder / "config.json", self.config
        if setting(file, config, "wbits", int, 32) < 16:
            raise CheckpointError(
                f"{file}: wbits {config['wbits']}: the weights are quantized in a format of the original code. "
                "Take the checkpoint without -int4 or -int8; it can be quantized while it loads"
            )
        if config["n_head"] % NUM_BLOCKS:
            raise CheckpointError(f"{file}: n_head {config['n_head']} is not a multiple of {NUM_BLOCKS}, as MOSS needs")
        head_dim = config["n_embd"] // config["n_head"]
        rotary_dim = setting(file, config, "rotary_dim", int, 0)
        if not rotary_dim or not 0 < rotary_dim <= head_dim or rotary_dim % 2:
            raise CheckpointError(
                f"{file}: rotary_dim {config.get('rotary_dim')} must be even, and at most the head's {head_dim}"
            )

    def build(self) -> PreTrainedModel:
        """Random weights."""
        config: Any = copy.deepcopy(self.network_config)
        return MossForCausalLM(config)

    @classmethod
    def write_tiny(cls, folder: Path, texts: Sequence[str], size: TinySize) -> None:
        """Half-precision pytorch_model.bin in two shards with the tensor names and tokenizer files of the original.

        Raises:
            ConfigError: If the number of heads is not a multiple of four, or the vocabulary too small.
        """
        if size.num_heads % NUM_BLOCKS:
            raise ConfigError(f"num_heads {size.num_heads} must be a multiple of {NUM_BLOCKS} for the family moss")
        added = _write_tokenizer(folder, texts, size.vocab_size)
        head_dim = size.hidden_size // size.num_heads
        config: dict[str, Any] = {
            "architectures": ["MossForCausalLM"],
            "model_type": "moss",
            "activation_function": "gelu_new",
            "attn_pdrop": 0.0,
            "bos_token_id": min(added.values()) - 1,
            "embd_pdrop": 0.0,
            "eos_token_id": added["<eom>"],
            "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-5,
            "n_ctx": size.context_length,
            "n_embd": size.hidden_size,
            "n_head": size.num_heads,
            "n_inner": size.intermediate_size,
            "n_layer": size.num_layers,
            "n_positions": size.context_length,
            "resid_pdrop": 0.0,
            # A quarter of the head, as in the original.
            "rotary_dim": max(2, head_dim // 8 * 2),
            "scale_attn_weights": True,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "use_cache": True,
            "vocab_size": size.vocab_size,
        }
        _write_json(folder / "config.json", config)
        _write_weights(folder, MossForCausalLM(MossConfig(**config)))


def _write_tokenizer(folder: Path, texts: Sequence[str], vocab_size: int) -> dict[str, int]:
    """The files of the original with a small vocabulary.

    Returns:
        Ids of the added tokens.
    """
    added_tokens = [*WHITESPACE_RUNS, *FIELD_ENDS]
    num_pieces = vocab_size - len(added_tokens)
    alphabet = ByteLevel.alphabet()
    if num_pieces <= len(alphabet):
        raise ConfigError(f"vocab_size must be over {len(alphabet) + len(added_tokens)} for the family moss")
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=num_pieces - 1, initial_alphabet=alphabet, show_progress=False)
    # What stands in every example deserves pieces of its own.
    marks = "<|Human|>: <|MOSS|>: <|Inner Thoughts|>: <|Commands|>: <|Results|>: None"
    tokenizer.train_from_iterator([*texts, *[META_INSTRUCTION, marks] * 20], trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    vocab = {**learned["vocab"], END_OF_TEXT: len(learned["vocab"])}
    added = {token: len(vocab) + position for position, token in enumerate(added_tokens)}
    _write_json(folder / "vocab.json", vocab)
    merges = "".join(f"{left} {right}\n" for left, right in learned["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    _write_json(folder / "added_tokens.json", added)
    special = {"bos_token": END_OF_TEXT, "eos_token": "<eom>", "unk_token": END_OF_TEXT}
    declared = {role: _declaration(token) for role, token in special.items()}
    ends = [_declaration(token) for token in FIELD_ENDS]
    _write_json(folder / "special_tokens_map.json", {**declared, "additional_special_tokens": ends})
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "errors": "replace",
        "tokenizer_class": "MossTokenizer",
        **{role: {"__type": "AddedToken", **value} for role, value in declared.items()},
    }
    _write_json(folder / "tokenizer_config.json", settings)
    return added


def _declaration(token: str) -> dict[str, Any]:
    return {"content": token, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def _write_weights(folder: Path, model: MossForCausalLM) -> None:
    """Two shards of half the tensors each, and the index that tells where each is."""
    state = original_state_dict(model)
    names = list(state)
    middle = len(names) // 2
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[:middle], names[middle:]), start=1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: state[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    total_size = sum(weight.numel() * weight.element_size() for weight in state.values())
    _write_json(
        folder / "pytorch_model.bin.index.json", {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    )


def original_state_dict(model: MossForCausalLM) -> dict[str, torch.Tensor]:
    """The weights under the names and in the precision of the released files, causal masks included."""
    state = revert_weight_conversion(model, {name: weight.half() for name, weight in model.state_dict().items()})
    length = model.config.n_positions
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    for layer in range(model.config.n_layer):
        state[f"transformer.h.{layer}.attn.causal_mask"] = mask
    return dict(sorted(state.items()))


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
