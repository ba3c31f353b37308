"""The tokenizer of ChatGLM2-6B and ChatGLM3-6B.

It is sentencepiece BPE with a dummy prefix, byte fallback and single digits, all blanks kept. Its control
tokens are not pieces: the original code appends them, and [gMASK] sop stand before every text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing

from lit_sft.families.shared.sentencepiece import SentencePieceTokenizer
from lit_sft.families.shared.tokenizer_data import TokenizerData, sentencepiece_data

PREFIX = ("[gMASK]", "sop")
"""Control tokens before every text."""

CONTROLS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
"""Control tokens that the original code appends to the pieces of the model, in the order of their ids."""


class Glm2Tokenizer(SentencePieceTokenizer):
    """Ids and texts of ChatGLMTokenizer: no text spells out a control token, every text begins with [gMASK] sop.

    Args:
        model_file: The sentencepiece model.
        roles: Control tokens of chat roles that follow the others.
        has_named_controls: Whether decoding writes the names of control tokens, or nothing.
        encode_special_tokens: Whether a text may spell out the roles after all.
        kwargs: Passed on to transformers.
    """

    def __init__(
        self,
        model_file: str,
        *,
        roles: Sequence[str] = (),
        has_named_controls: bool = False,
        encode_special_tokens: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model_file,
            control_pattern=None,
            appended=(*CONTROLS, *roles),
            parsed=roles,
            padding_side="left",
            clean_up_tokenization_spaces=False,
            model_input_names=["input_ids", "attention_mask"],
            split_special_tokens=not encode_special_tokens,
            **kwargs,
        )
        # Named only now: the constructor would make a text able to spell them out.
        self.eos_token, self.unk_token, self.pad_token = "</s>", "<unk>", "<unk>"
        names = [*PREFIX, "</s>"]
        self.backend_tokenizer.post_processor = TemplateProcessing(
            single="[gMASK] sop $A",
            pair="[gMASK] sop $A $B </s>",
            special_tokens=[(name, self.convert_tokens_to_ids(name)) for name in names],
        )
        first = self._processor.vocab_size()
        named = enumerate((*CONTROLS, *roles), start=first) if has_named_controls else ()
        self._names = dict(named)

    @property
    def encode_special_tokens(self) -> bool:
        """Whether a text may spell out the roles, which is the original's name for not splitting them."""
        return not self.split_special_tokens

    @encode_special_tokens.setter
    def encode_special_tokens(self, value: bool) -> None:
        self.split_special_tokens = not value

    @property
    def saved_settings(self) -> dict[str, Any]:
        """With the name that the original has for it."""
        return {"encode_special_tokens": self.encode_special_tokens}

    def data(self) -> TokenizerData:
        """What it is, for other languages; controls are silent unless they have names."""
        model = Path(self.model_file).read_bytes()
        texts = {index: "" for index in range(len(self) - len(self.added)) if not self._text_of(index)}
        first = self._processor.vocab_size()
        appended = {index: self._names.get(index, "") for index in range(first, min(self.added, default=len(self)))}
        return sentencepiece_data(
            model,
            texts={**texts, **appended},
            skipped={index for index, token in self.added.items() if token.special},
            added=self.added,
        )

    @property
    def prefix_ids(self) -> list[int]:
        """Ids that stand before every text."""
        return [self.convert_tokens_to_ids(token) for token in PREFIX]

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else [int(token) for token in token_ids]
        if skip_special_tokens:
            ids = [token for token in ids if token not in self.added or not self.added[token].special]
        return self._joined(ids)

    def _decoded(self, ids: list[int]) -> str:
        return str(self._processor.decode_pieces([self._text_of(token) for token in ids]))

    def _text_of(self, token: int) -> str:
        is_text = token < self._processor.vocab_size() and not (
            self._processor.is_control(token) or self._processor.is_unknown(token)
        )
        return self._processor.id_to_piece(token) if is_text else self._names.get(token, "")
