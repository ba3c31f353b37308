"""The tokenizers of transformers that can be written as data: byte-level BPE with the pattern of GPT-2."""

from __future__ import annotations

import json
from typing import Any

from lit_sft.errors import ConfigError
from lit_sft.families.native.prompts import END, START, template_marks
from lit_sft.families.shared.tokenizer_data import (
    REFUSED,
    TokenizerData,
    added_data,
    byte_bpe_data,
    is_gpt2_like,
)


def native_tokenizer_data(tokenizer: Any) -> TokenizerData:
    """Data of a Rust tokenizer; control tokens that somebody wrote are split off and encoded as text.

    Raises:
        ConfigError: If it is of another kind.
    """
    rust = getattr(tokenizer, "backend_tokenizer", None)
    if rust is None or not is_gpt2_like(rust):
        raise ConfigError(
            f"tokenizers other than byte-level BPE with the pattern of GPT-2 {REFUSED} (tokenizer.json of this one "
            "has another normalizer, pre-tokenizer or model)"
        )
    marks = template_marks(tokenizer)
    added = tokenizer.added_tokens_decoder
    if marks.control.pattern != marks.control_in_answers.pattern:
        raise ConfigError(f"chat templates that write added tokens which answers may write too {REFUSED}")
    parsed = {index for index, token in added.items() if not marks.control.fullmatch(token.content)}
    if any(token.lstrip or token.rstrip for token in added.values()):
        raise ConfigError(f"added tokens that swallow blanks beside them {REFUSED}")
    content = json.loads(rust.to_str())["model"]
    merges = [tuple(rule) if isinstance(rule, list) else tuple(rule.split(" ")) for rule in content["merges"]]
    vocab = {**{token.content: index for index, token in added.items()}, **content["vocab"]}
    return byte_bpe_data(
        vocab,
        merges,
        added=added_data(added, parsed),
        skipped={index for index, token in added.items() if token.special},
        split=[token.content for token in added.values() if marks.control.fullmatch(token.content)],
        dropped=START + END,
    )
