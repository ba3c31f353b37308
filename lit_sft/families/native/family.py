"""Any causal language model that transformers loads itself (Llama, Qwen2, Mistral, GLM-4-hf ...).

Positions, mask, norm and activation are those of the transformers class; weights load under their own names. The
prompt format is the checkpoint's chat template, where it has one. Models that need remote code are not of this family.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lit_sft.conversation import Conversation, EncodedTurn, PromptFormat
from lit_sft.errors import CheckpointError, ConfigError
from lit_sft.families._base import Behavior, Family, TinySize
from lit_sft.families.native.probe import behavior_of
from lit_sft.families.native.prompts import ChatTemplateFormat, encode_text
from lit_sft.families.native.tokenizer_data import native_tokenizer_data
from lit_sft.families.shared.history import truncate_history
from lit_sft.families.shared.packed_rows import separate_packed
from lit_sft.families.shared.prompt_pieces import text, token
from lit_sft.families.shared.settings import read_object
from lit_sft.families.shared.tokenizer_data import TokenizerData

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Chat template of the tiny checkpoint."""


class PlainFormat(PromptFormat):
    r"""`Human: ...\n\nAssistant: ...` and the end-of-text token, for base models, which have no chat template.

    The text begins with what the tokenizer sets before any text; answers begin with a blank of their own.
    """

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length

    def encode_turns(self, conversation: Conversation, tokenizer: Any) -> list[EncodedTurn]:
        """A system message stands before the first `Human:`."""
        turns: list[EncodedTurn] = []
        for read, answer in conversation.turns():
            system = "".join(f"{message.content}\n\n" for message in read if message.role == "system")
            asked = "\n".join(message.content for message in read if message.role != "system")
            prompt_ids = tokenizer.encode_text(f"{system}Human: {asked}\n\nAssistant:")
            if not turns and tokenizer.bos_token_id in tokenizer("")["input_ids"]:
                prompt_ids = [tokenizer.bos_token_id, *prompt_ids]
            reply_ids = [] if answer is None else [*tokenizer.encode_text(f" {answer.content}"), tokenizer.eos_token_id]
            is_supervised = answer is None or answer.is_supervised
            turns.append(EncodedTurn(prompt_ids, reply_ids, is_supervised=is_supervised))
        return turns

    def encode_prompt(self, conversation: Conversation, tokenizer: Any) -> list[int]:
        """Ids that end with `Assistant:`, of as many of the last rounds as leave room for an answer."""
        return truncate_history(conversation, super().encode_prompt, tokenizer, self.context_length)

    def describe(self, tokenizer: Any) -> dict[str, Any]:
        """A question and an answer are a text each."""
        has_start = tokenizer.bos_token_id in tokenizer("")["input_ids"]
        return {
            "unit": "turn",
            "start": [token(tokenizer.bos_token_id)] if has_start else [],
            "system_end": "\n\n",
            "ask": [text("{system}Human: {asked}\n\nAssistant:")],
            "answer": [text(" {content}"), token(tokenizer.eos_token_id)],
            "fit": {"most": self.context_length - 1, "drop": "rounds"},
        }

    def stop_token_ids(self, tokenizer: Any) -> list[int]:
        """Only the end-of-text token."""
        return [tokenizer.eos_token_id]


PLAIN_DECODERS = {"llama"}
"""Model types known to hand one causal mask to all layers; masks of the others are left to transformers."""


class Native(Family):
    """A model in the layout of transformers, with its own tokenizer and chat template."""

    name = "native"
    is_fallback = True
    tokenizer_file_names = (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
    )

    def __init__(self, folder: Path, config: dict[str, Any], prompt_format: str | None = None) -> None:
        if prompt_format == "chat-template" and not _has_chat_template(folder):
            raise ConfigError(
                f"{folder} has no chat template (chat_template in tokenizer_config.json, or chat_template.jinja): "
                "it is a base model. Leave prompt_format out or take human-assistant"
            )
        super().__init__(folder, config, prompt_format)

    @classmethod
    def matches(cls, config: dict[str, Any]) -> bool:
        """Known to transformers, which knows none of the original Baichuan, MOSS and ChatGLM model types."""
        return str(config.get("model_type")) in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    def read_config(self) -> PreTrainedConfig:
        """As its model type has it."""
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            self.folder, local_files_only=True, trust_remote_code=False
        )
        return config

    @property
    def context_length(self) -> int:
        """What config.json says, under the name that its model type has for it."""
        config = self.network_config.get_text_config()
        for key in ("max_position_embeddings", "max_sequence_length", "seq_length"):
            if isinstance(length := getattr(config, key, None), int) and length > 0:
                return length
        raise CheckpointError(f"{self.folder / 'config.json'} says no context length; add max_position_embeddings")

    @cached_property
    def lora_targets(self) -> tuple[str, ...]:
        """Names of all linear layers but the head, in the order of the network."""
        model = self.skeleton()
        head = model.get_output_embeddings()
        return tuple(
            dict.fromkeys(
                name.rpartition(".")[2]
                for name, module in model.named_modules()
                if isinstance(module, torch.nn.Linear) and module is not head
            )
        )

    def prompt_formats(self) -> dict[str, PromptFormat]:
        """The chat template, if there is one; base models get a plain form, as Baichuan-7B does."""
        plain = {"human-assistant": PlainFormat(self.context_length)}
        if not _has_chat_template(self.folder):
            return {**plain}
        return {"chat-template": ChatTemplateFormat(self.context_length, _eos_ids(self.folder)), **plain}

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """What AutoTokenizer finds, with `encode_text`."""
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False
            )
        except (ValueError, OSError) as error:
            said = str(error).partition("\n")[0] or type(error).__name__
            raise CheckpointError(f"{self.folder}: no tokenizer loads: {said}") from None
        if tokenizer.eos_token_id is None:
            file = self.folder / "tokenizer_config.json"
            raise CheckpointError(f"{file} has no eos_token; name the one that ends texts")
        tokenizer.encode_text = partial(encode_text, tokenizer)
        return tokenizer

    def tokenizer_data(self, tokenizer: Any) -> TokenizerData:
        """Of byte-level BPE."""
        return native_tokenizer_data(tokenizer)

    def load_model(self, dtype: torch.dtype, quantization: Any = None) -> PreTrainedModel:
        """As transformers does, from this folder only."""
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            self.folder,
            config=self.network_config,
            dtype=dtype,
            quantization_config=quantization,
            local_files_only=True,
            trust_remote_code=False,
        )
        if model.config.model_type in PLAIN_DECODERS:
            separate_packed(model.get_decoder())
        return model

    def behavior(self, network: PreTrainedModel) -> Behavior:
        """Found out with a few tokens, for model types differ."""
        return behavior_of(network)

    def build(self) -> PreTrainedModel:
        """Random weights."""
        model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(self.network_config))
        return model

    def native_config(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """It is one of transformers already."""
        return config

    def native_tokenizer(self) -> PreTrainedTokenizerBase:
        """As AutoTokenizer has it."""
        return self.load_tokenizer()

    @classmethod
    def write_tiny(cls, folder: Path, texts: Sequence[str], size: TinySize) -> None:
        """A Llama with byte-level BPE and ChatML."""
        special = {"pad_token": "<|endoftext|>", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size.vocab_size,
            special_tokens=list(special.values()),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.save(str(folder / "tokenizer.json"))
        settings = {
            **special,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": CHATML,
            "clean_up_tokenization_spaces": False,
            "model_max_length": size.context_length,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
        config = LlamaConfig(
            hidden_size=size.hidden_size,
            intermediate_size=size.intermediate_size,
            num_hidden_layers=size.num_layers,
            num_attention_heads=size.num_heads,
            num_key_value_heads=1 if size.num_heads % 2 else size.num_heads // 2,
            vocab_size=size.vocab_size,
            max_position_embeddings=size.context_length,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        LlamaForCausalLM(config).bfloat16().save_pretrained(folder)


def _has_chat_template(folder: Path) -> bool:
    in_settings = read_object(folder / "tokenizer_config.json").get("chat_template")
    return bool(in_settings) or (folder / "chat_template.jinja").is_file()


def _eos_ids(folder: Path) -> tuple[int, ...]:
    """Tokens at which the released model stops; chat models often have more than the tokenizer knows."""
    file = folder / "generation_config.json"
    found = read_object(file).get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(index, int) for index in ids):
        raise CheckpointError(f"{file}: eos_token_id is {found}, not an id or a list of ids; correct it")
    return tuple(ids)
