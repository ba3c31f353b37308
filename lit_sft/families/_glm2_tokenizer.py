"""The tokenizer of ChatGLM2-6B and ChatGLM3-6B.

It is sentencepiece BPE with a dummy prefix, byte fallback and single digits, all blanks kept. Its control
tokens are no pieces: the original code appends them, and [gMASK] sop stand before every text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import BatchEncoding
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils.generic import PaddingStrategy

from lit_sft.families._sentencepiece import SentencePieceTokenizer

PREFIX = ("[gMASK]", "sop")
"""Control tokens before every text."""

CONTROLS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
"""Control tokens that the original code appends to the pieces of the model, in the order of their ids."""

UNKNOWN_TO_SENTENCEPIECE = (
    "is_split_into_words",
    "sanitize_control_tokens",
    "return_token_type_ids",
    "return_overflowing_tokens",
    "return_special_tokens_mask",
    "return_offsets_mapping",
    "return_length",
)
PADDING_OPTIONS = ("pad_to_multiple_of", "padding_side", "return_tensors", "verbose")


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
    def prefix_ids(self) -> list[int]:
        """Ids that stand before every text."""
        ids = self.convert_tokens_to_ids(list(PREFIX))
        assert isinstance(ids, list)
        return ids

    def _encode_plus(  # type: ignore[override]  # most options are only passed through
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        max_length: int | None = None,
        split_special_tokens: bool | None = None,
        **options: Any,
    ) -> BatchEncoding:
        """Ids of texts by sentencepiece on all cores; what it lacks (offsets, pairs, parsed roles) by `tokenizers`."""
        texts = [text] if isinstance(text, str) else text
        is_split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        is_plain = (
            is_split
            and text_pair is None
            and truncation_strategy == TruncationStrategy.DO_NOT_TRUNCATE
            and options.get("return_attention_mask") is not False
            and not any(options.get(name) for name in UNKNOWN_TO_SENTENCEPIECE)
            and all(isinstance(item, str) and item for item in texts)
        )
        if not is_plain or not texts:
            return super()._encode_plus(
                text,
                text_pair,
                add_special_tokens=add_special_tokens,
                padding_strategy=padding_strategy,
                truncation_strategy=truncation_strategy,
                max_length=max_length,
                split_special_tokens=split_special_tokens,
                **options,
            )
        prefix = self.prefix_ids if add_special_tokens else []
        rows = [prefix + ids for ids in self._processor.encode(list(texts))]
        batch = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
        if isinstance(text, str) and options.get("return_tensors") is None:
            batch = {name: values[0] for name, values in batch.items()}
        if padding_strategy == PaddingStrategy.DO_NOT_PAD:
            return BatchEncoding(batch, tensor_type=options.get("return_tensors"))
        padding = {name: options[name] for name in PADDING_OPTIONS if name in options}
        return self.pad(batch, padding=padding_strategy, max_length=max_length, **padding)

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else [int(token) for token in token_ids]
        return str(self._processor.decode_pieces([self._text_of(token) for token in ids]))

    def _text_of(self, token: int) -> str:
        is_text = token < self._processor.vocab_size() and not (
            self._processor.is_control(token) or self._processor.is_unknown(token)
        )
        return self._processor.id_to_piece(token) if is_text else self._names.get(token, "")
