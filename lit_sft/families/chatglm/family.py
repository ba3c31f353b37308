"""ChatGLM-6B (THUDM/chatglm-6b, 2023), both vocabulary revisions.

How it differs from Llama:

- Mask: a prefix model. The prompt up to and including [gMASK] sees itself in both directions, the answer from <sop>
  on is causal. Tokens without <sop> are read as plain causal text (the original refuses them).
- Positions: two channels, each turning half of every head by rotary angles; frequencies rounded to half precision.
- Norm: LayerNorm with bias, and the residual path carries its *output* times sqrt(56), not its input.
- Activation: tanh GELU in a plain two-layer MLP; every linear layer but the head has a bias.
- Fused weights: query, key and value are one matrix on disk, interleaved head by head; embedding and head are one
  matrix (unless config.json says tie_word_embeddings: false), even if two are stored.
- Vocabulary: 130528 rows since April 2023; before, 20000 unused image tokens came first, and the file ice_text.model
  lacked its last 344 pieces, which the code added.
"""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import sentencepiece
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_sft.conversation import PromptFormat
from lit_sft.errors import CheckpointError, ConfigError
from lit_sft.families._base import Family, TinySize
from lit_sft.families.chatglm.layout import positions_of_prefix
from lit_sft.families.chatglm.network import ChatGLM6BConfig, ChatGLM6BForCausalLM
from lit_sft.families.chatglm.prompts import ChatGLMFormat
from lit_sft.families.chatglm.tokenizer import MODEL_FILE, ChatGLM6BTokenizer, complete_model
from lit_sft.families.chatglm.weights import fuse_heads
from lit_sft.families.shared.added_tokens import read_added_tokens
from lit_sft.families.shared.sentencepiece_file import open_processor
from lit_sft.families.shared.settings import read_object, setting, token_setting, token_text

NUM_APPENDED = 344
"""Pieces of ice_text.model that are not trained."""

MOST_IMAGE_TOKENS = 1 << 20
"""More than any embedding has rows for."""

TOKENIZER_CONFIG = {
    "bos_token": "<sop>",
    "do_lower_case": False,
    "end_token": "</s>",
    "eos_token": "<eop>",
    "gmask_token": "[gMASK]",
    "mask_token": "[MASK]",
    "num_image_tokens": 0,
    "pad_token": "<pad>",
    "remove_space": False,
    "tokenizer_class": "ChatGLMTokenizer",
    "unk_token": "<unk>",
}
"""The released tokenizer_config.json, without its reference to remote code."""


TRAINING_TIME = "[[训练时间]]"


class ChatGLM6B(Family):
    """ChatGLM-6B, chat model of six billion parameters: bidirectional prompt, two-channel rotary positions.

    LayerNorm whose scaled output is the residual, tanh-GELU MLP, biases everywhere, query, key and value interleaved
    in one matrix on disk, embedding and head tied. The module docstring says more.
    """

    name = "chatglm-6b"
    released: ClassVar = {
        "chatglm-6b": {
            "model_type": "chatglm", "hidden_size": 4096, "inner_hidden_size": 16384, "num_layers": 28,
            "num_attention_heads": 32, "max_sequence_length": 2048, "vocab_size": 130528, "bos_token_id": 130004,
            "eos_token_id": 130005, "mask_token_id": 130000, "gmask_token_id": 130001, "pad_token_id": 3,
        }
    }  # fmt: skip
    config_class = ChatGLM6BConfig
    size_keys = ("vocab_size", "hidden_size", "inner_hidden_size", "num_layers", "num_attention_heads")
    prefix_input = "hidden"
    lora_targets = ("q_proj", "k_proj", "v_proj", "dense", "dense_h_to_4h", "dense_4h_to_h")
    tokenizer_file_names = (MODEL_FILE, "tokenizer_config.json", "added_tokens.json")
    postprocess_lookback = len(TRAINING_TIME)
    polish: ClassVar = {
        "replace": {TRAINING_TIME: "2023年"},
        "beside_han": dict(zip(",!:;?", "，！：；？", strict=True)),
    }

    def __init__(self, folder: Path, config: dict[str, Any], prompt_format: str | None = None) -> None:
        super().__init__(folder, config, prompt_format)
        file = folder / "config.json"
        if config.get("quantization_bit"):
            raise CheckpointError(
                f"{file} has quantization_bit: {config['quantization_bit']}, so its weights are integers, which cannot "
                "be tuned. Take the half-precision checkpoint (THUDM/chatglm-6b) and quantize it on loading (QLoRA)"
            )
        if config.get("pre_seq_len"):
            raise CheckpointError(
                f"{file} has pre_seq_len: a P-Tuning prefix, not a model. Take the model it was made for, and give "
                "this folder as adapter (chat --adapter, or the option of PTuning)"
            )
        if not config.get("position_encoding_2d", True):
            raise CheckpointError(f"{file} has position_encoding_2d: false, which no released ChatGLM-6B has")

    def postprocess_answer(self, answer: str) -> str:
        """Full-width punctuation, which the tokenizer does not know, restored as the original chat does."""
        answer = answer.strip()
        for written, meant in self.polish["replace"].items():
            answer = answer.replace(written, meant)
        for half, full in self.polish["beside_han"].items():
            beside = rf"(?<=[\u4e00-\u9fff]){re.escape(half)}|{re.escape(half)}(?=[\u4e00-\u9fff])"
            answer = re.sub(beside, full, answer)
        return answer

    @classmethod
    def matches(cls, config: dict[str, Any]) -> bool:
        """All ChatGLMs share model type and class names; the names of the sizes tell them apart."""
        if config.get("model_type", "chatglm") != "chatglm":
            return False
        later = ("padded_vocab_size", "ffn_hidden_size", "multi_query_group_num")
        own = ("inner_hidden_size", "position_encoding_2d", "max_sequence_length")
        return not any(key in config for key in later) and any(key in config for key in own)

    @property
    def context_length(self) -> int:
        """The released model reads 2048 tokens."""
        return self.config.get("max_sequence_length") or 2048

    def prompt_formats(self) -> dict[str, PromptFormat]:
        """The original's, and that of its fine-tuning script for data with a history column."""
        return {
            "chatglm": ChatGLMFormat(self.context_length),
            "chatglm-rounds": ChatGLMFormat(self.context_length, always_rounds=True),
        }

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The original tokenizer, except that <eop> ends an answer in the March 2023 revision too.

        Raises:
            CheckpointError: If ice_text.model is missing, or its ids are not those of config.json.
        """
        model_file, settings_file = self.folder / MODEL_FILE, self.folder / "tokenizer_config.json"
        if not model_file.is_file():
            raise CheckpointError(f"{self.folder} holds no {MODEL_FILE}; is the download complete?")
        settings = read_object(settings_file)
        # What transformers 4 recognized in text: [gMASK] is not among them.
        roles = {"bos_token": "<sop>", "eos_token": "</s>", "mask_token": "[MASK]", "pad_token": "<pad>"}
        recognized = [
            token_setting(settings_file, settings, role, default)
            for role, default in {**roles, "unk_token": "<unk>"}.items()
        ]
        # A copy saved by this class says so itself.
        parsed = setting(settings_file, settings, "parsed_tokens", list, [*recognized])
        num_image_tokens = setting(settings_file, settings, "num_image_tokens", int, 20000)
        if not 0 <= num_image_tokens <= MOST_IMAGE_TOKENS:
            raise CheckpointError(f"{settings_file}: num_image_tokens is {num_image_tokens}; expected 0, or 20000")
        tokenizer = ChatGLM6BTokenizer(
            str(model_file),
            num_image_tokens=num_image_tokens,
            parsed_tokens=[token_text(settings_file, "parsed_tokens", token) for token in parsed],
            added=read_added_tokens(self.folder),
            model_max_length=self.context_length,
        )
        self._check_ids(tokenizer)
        return tokenizer

    def _check_ids(self, tokenizer: ChatGLM6BTokenizer) -> None:
        own = {"bos_token_id": tokenizer.bos_token_id, "gmask_token_id": tokenizer.gmask_token_id}
        wrong = {key: self.config[key] for key, token in own.items() if self.config.get(key, token) != token}
        rows = self.config.get("vocab_size", tokenizer.vocab_size)
        if wrong or tokenizer.vocab_size > rows:
            raise CheckpointError(
                f"{self.folder}: config.json has {wrong or f'vocab_size: {rows}'}, but {MODEL_FILE} after "
                f"{tokenizer.num_image_tokens} image tokens gives {own} of {tokenizer.vocab_size}. Take all files "
                "from one revision (num_image_tokens in tokenizer_config.json is 0 since April 2023, absent before)"
            )

    @property
    def prefix_end_id(self) -> int | None:
        """<sop>: all before it is the prefix."""
        return int(self.network_config.bos_token_id)

    def traced_hidden_states(
        self, network: Any, input_ids: torch.Tensor, position_ids: torch.Tensor, prefix_length: torch.Tensor | None
    ) -> torch.Tensor:
        """Both channels of the positions from the length of the prefix, for the decoder looks for it in the tokens."""
        assert prefix_length is not None
        decoder = network.transformer
        hidden: torch.Tensor = decoder.word_embeddings(input_ids)
        angles = decoder.rotary(positions_of_prefix(position_ids, prefix_length[:, None]), hidden.dtype)
        for layer in decoder.layers:
            hidden = layer(hidden, attention_mask=None, angles=angles, past_key_values=None)
        normed: torch.Tensor = decoder.final_layernorm(hidden)
        return normed

    def load_model(self, dtype: torch.dtype, quantization: Any = None) -> PreTrainedModel:
        """query_key_value is split while it streams in."""
        return ChatGLM6BForCausalLM.from_pretrained(
            self.folder,
            config=self.network_config,
            dtype=dtype,
            quantization_config=quantization,
            local_files_only=True,
        )

    def build(self) -> PreTrainedModel:
        """Random weights."""
        config: Any = copy.deepcopy(self.network_config)
        return ChatGLM6BForCausalLM(config)

    @classmethod
    def write_tiny(cls, folder: Path, texts: Sequence[str], size: TinySize) -> None:
        """The April 2023 layout: pytorch_model.bin in half precision with norms in full, and its tokenizer."""
        if size.hidden_size % (4 * size.num_heads):
            raise ConfigError(
                f"hidden_size {size.hidden_size} must be a multiple of four times num_heads {size.num_heads}"
            )
        num_trained = size.vocab_size - NUM_APPENDED
        if num_trained < 300:
            raise ConfigError(f"vocab_size {size.vocab_size} must be at least {NUM_APPENDED + 300} for {cls.name}")
        train_model(folder / MODEL_FILE, texts, num_trained)
        marks = open_processor((folder / MODEL_FILE).read_bytes())
        config = tiny_config(size, marks)
        for name, content in (("config.json", config), ("tokenizer_config.json", TOKENIZER_CONFIG)):
            (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
        model = ChatGLM6BForCausalLM(ChatGLM6BConfig(**config))
        torch.save(original_state_dict(model), folder / "pytorch_model.bin")


def tiny_config(size: TinySize, marks: sentencepiece.SentencePieceProcessor) -> dict[str, Any]:
    """A config.json with the keys of the released one."""
    return {
        "architectures": ["ChatGLMModel"],
        "bos_token_id": marks.piece_to_id("<sop>"),
        "eos_token_id": marks.piece_to_id("<eop>"),
        "mask_token_id": marks.piece_to_id("[MASK]"),
        "gmask_token_id": marks.piece_to_id("[gMASK]"),
        "pad_token_id": marks.piece_to_id("<pad>"),
        "hidden_size": size.hidden_size,
        "inner_hidden_size": size.intermediate_size,
        "layernorm_epsilon": 1e-5,
        "max_sequence_length": size.context_length,
        "model_type": "chatglm",
        "num_attention_heads": size.num_heads,
        "num_layers": size.num_layers,
        "position_encoding_2d": True,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": size.vocab_size,
    }


def original_state_dict(model: ChatGLM6BForCausalLM) -> dict[str, torch.Tensor]:
    """The weights under the names and in the precisions of the released pytorch_model.bin, `inv_freq` included."""
    state: dict[str, torch.Tensor] = {}
    num_heads = model.config.num_attention_heads
    for name, weight in model.state_dict().items():
        prefix, _, part = name.rpartition("attention.")
        if "layernorm" in name:
            state[name] = weight
        elif part.startswith("q_proj"):
            kind = part.removeprefix("q_proj.")
            parts = [model.get_parameter(f"{prefix}attention.{each}_proj.{kind}").detach() for each in "qkv"]
            state[f"{prefix}attention.query_key_value.{kind}"] = fuse_heads(parts, num_heads).half()
            state[f"{prefix}attention.rotary_emb.inv_freq"] = model.transformer.rotary.frequencies("cpu").half()
        elif not part.startswith(("k_proj", "v_proj")):
            state[name] = weight.half()
    return state


def train_model(path: Path, texts: Iterable[str], num_pieces: int) -> None:
    """Train a small unigram model as the original was, and append the pieces of the released file.

    Args:
        path: File to write.
        texts: What to train on.
        num_pieces: Upper bound on the number of trained pieces.
    """
    texts = list(texts)
    letters = Counter("".join(texts))
    # Every covered character becomes a piece; the rest is left to the byte pieces.
    covered = sum(count for _, count in letters.most_common(num_pieces // 2))
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=file,
            model_type="unigram",
            vocab_size=num_pieces,
            hard_vocab_limit=False,
            character_coverage=min(0.9999, covered / letters.total()),
            split_digits=True,
            user_defined_symbols=["<n>"],
            pad_id=3,
            max_sentence_length=1 << 20,
            minloglevel=2,
        )
    path.write_bytes(complete_model(path.read_bytes()))
