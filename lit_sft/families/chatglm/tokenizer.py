"""The tokenizer of ChatGLM-6B: a sentencepiece unigram model, with its own writing of blanks and line ends.

The sentencepiece library does the work: its Rust conversion chooses other pieces where scores tie.
"""

# mypy: disable-error-code="no-untyped-call,override"
# transformers and torch are typed in part only.

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AddedToken, BatchEncoding, PreTrainedTokenizer

from lit_sft.errors import CheckpointError
from lit_sft.families.shared.added_tokens import FILE, behind
from lit_sft.families.shared.sentencepiece_file import (
    BYTE,
    CONTROL,
    USER_DEFINED,
    Piece,
    extended_model,
    open_processor,
)
from lit_sft.families.shared.token_ids import TokenIdCache
from lit_sft.families.shared.tokenizer_data import TokenizerData, sentencepiece_data

MODEL_FILE = "ice_text.model"

MARKS = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
TAB = "<|tab|>"
LONGEST_BLANK = 80
BLANKS = re.compile(f" {{2,{LONGEST_BLANK}}}")
WRITTEN_BLANKS = re.compile(r"<\|blank_([2-9]|[1-7][0-9]|80)\|>")


def complete_model(serialized: bytes) -> bytes:
    """Append the 344 pieces which the first code of the model added on loading, unless the model holds them."""
    known = open_processor(serialized)
    if known.piece_to_id("[gMASK]") != known.unk_id():
        return serialized
    blanks = [_blank(length) for length in range(2, LONGEST_BLANK + 1)]
    appended = [
        *(Piece(mark, CONTROL) for mark in MARKS),
        *(Piece(symbol, USER_DEFINED) for symbol in (TAB, *blanks)),
        *(Piece(f"<0x{byte:02X}>", BYTE) for byte in range(256)),
    ]
    return extended_model(serialized, appended)


def write_whitespace(text: str) -> str:
    """Line ends, tabs and runs of blanks as pieces of their own, which sentencepiece would otherwise drop."""
    text = text.replace("\n", "<n>").replace("\t", TAB)
    return BLANKS.sub(lambda run: _blank(len(run[0])), text)


def read_whitespace(text: str) -> str:
    """The inverse of `write_whitespace`."""
    text = text.replace("<n>", "\n").replace(TAB, "\t")
    return WRITTEN_BLANKS.sub(lambda blank: " " * int(blank[1]), text)


def _blank(length: int) -> str:
    return f"<|blank_{length}|>"


class ChatGLM6BTokenizer(TokenIdCache, PreTrainedTokenizer):
    """Ids and texts of the original tokenizer, of either vocabulary revision.

    Given text, it reads some control tokens in it as such, and appends [gMASK] <sop>, as the original did;
    `encode_text` does neither. `decode` damages text as the original did, removing blanks before punctuation,
    unless told `clean_up_tokenization_spaces=False`. Padding goes to the left. Unlike the original, masks are
    the usual [B, T], and no position ids are returned: the network finds them out.

    Args:
        vocab_file: The file ice_text.model, with or without the pieces that the first code appended.
        num_image_tokens: Ids before the first piece. The March 2023 revision has 20000 there, and follows older rules:
            a text with [MASK] gets no [gMASK], decoding cleans nothing up and skips no special tokens.
        parsed_tokens: Control tokens that are recognized in text given to the tokenizer itself.
        added: Tokens that tools list as added to the vocabulary, by id; all must be in it.
        kwargs: Passed on to transformers.
    """

    vocab_files_names = {"vocab_file": MODEL_FILE}  # noqa: RUF012 - transformers' own form
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        vocab_file: str,
        num_image_tokens: int = 20000,
        parsed_tokens: Sequence[str] = (),
        added: Mapping[int, AddedToken] | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_file = vocab_file
        self.num_image_tokens = num_image_tokens
        self.parsed_tokens = tuple(parsed_tokens)
        model = complete_model(Path(vocab_file).read_bytes())
        self.pieces = open_processor(model)
        if new := behind(self.vocab_size, dict(added or {}), self._id_of_piece, vocab_file):
            names = ", ".join(repr(token.content) for token in new.values())
            raise CheckpointError(
                f"{vocab_file}: {FILE} or tokenizer_config.json beside it adds {names} to the vocabulary, which is not "
                "supported for chatglm-6b; remove the entries, and such tokens are read as text"
            )
        kwargs.setdefault("padding_side", "left")
        kwargs.setdefault("clean_up_tokenization_spaces", not self.is_first_revision)
        super().__init__(
            num_image_tokens=num_image_tokens,
            parsed_tokens=list(parsed_tokens),
            **{
                "bos_token": "<sop>",
                "eos_token": "<eop>",
                "pad_token": "<pad>",
                "unk_token": "<unk>",
                "mask_token": "[MASK]",
                **kwargs,
            },
        )

    @property
    def is_first_revision(self) -> bool:
        """Whether the vocabulary is that of March 2023."""
        return self.num_image_tokens > 0

    @property
    def gmask_token_id(self) -> int:
        """Id of [gMASK], the mark of an answer to be written."""
        return self._convert_token_to_id("[gMASK]")

    @property
    def vocab_size(self) -> int:
        """Image tokens and pieces."""
        return self.num_image_tokens + int(self.pieces.vocab_size())

    def get_vocab(self) -> dict[str, int]:
        """Ids by token."""
        images = [f"<image_{index}>" for index in range(self.num_image_tokens)]
        pieces = self.pieces.id_to_piece(list(range(self.pieces.vocab_size())))
        return {token: index for index, token in enumerate([*images, *pieces])}

    def encode_text(self, text: str) -> list[int]:
        """Ids of text that somebody wrote: `<eop>` or `[gMASK]` in it stay ordinary characters."""
        pieces: list[int] = self.pieces.encode(write_whitespace(text))
        first = self.num_image_tokens
        return [first + piece for piece in pieces] if first else pieces

    def encode_texts(self, texts: list[str]) -> list[list[int]]:
        """`encode_text` of many texts, in parallel: up to twice as fast as one by one."""
        batch = self.pieces.encode([write_whitespace(text) for text in texts])
        return [[self.num_image_tokens + piece for piece in pieces] for pieces in batch]

    def data(self) -> TokenizerData:
        """What it is, for other languages."""
        skipped = {self.pad_token_id} if self.is_first_revision else {self.pad_token_id, *self.all_special_ids}
        model = self.pieces.serialized_model_proto()
        return sentencepiece_data(model, skipped=skipped, first_id=self.num_image_tokens, writes_whitespace=True)

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> Any:
        """Texts are encoded in one go before transformers takes the ids over; an empty list it would not take."""
        if text == [] and text_pair is None:
            return BatchEncoding({name: [] for name in self.model_input_names})
        is_batch = isinstance(text, list) and text_pair is None and all(isinstance(one, str) for one in text)
        if is_batch and not (kwargs.get("split_special_tokens") or kwargs.get("is_split_into_words")):
            plain = [one for one in text if not any(token in one for token in self.parsed_tokens)]
            ids = dict(zip(plain, self.encode_texts(plain), strict=True))
            rows = [ids[one] if one in ids else self.convert_tokens_to_ids(self.tokenize(one)) for one in text]
            text = [row or "" for row in rows]
        return super()._encode_plus(text, text_pair, **kwargs)

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Pieces of `text`; a control token in it swallows the blanks around it, unless `split_special_tokens`."""
        if not self.parsed_tokens or kwargs.get("split_special_tokens", self.split_special_tokens):
            return self._tokenize(text)
        parts = re.split("(" + "|".join(map(re.escape, self.parsed_tokens)) + ")", text)
        tokens: list[str] = []
        for index, part in enumerate(parts):
            if part in self.parsed_tokens:
                tokens.append(part)
                continue
            if index > 0:
                part = part.lstrip()
            if index < len(parts) - 1:
                part = part.rstrip()
            tokens += self._tokenize(part)
        return tokens

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Prompt, [gMASK], <sop> and, if given, the answer with <eop>."""
        ids = [*token_ids_0, *self._marks_after(token_ids_0), self.bos_token_id]
        return ids if token_ids_1 is None else [*ids, *token_ids_1, self.eos_token_id]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Copy the model file."""
        target = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}{MODEL_FILE}"
        if target.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of pieces."""
        return read_whitespace(self.pieces.decode_pieces(tokens))

    def _marks_after(self, prompt: list[int]) -> list[int]:
        if not self.is_first_revision:
            return [self.gmask_token_id]
        masks = (self.mask_token_id, self.gmask_token_id)
        if not any(token in masks for token in prompt):
            return [self.gmask_token_id]
        return [] if prompt[-1] in masks else [self._convert_token_to_id("</s>")]

    def _id_of_piece(self, token: str) -> int | None:
        index = self.pieces.piece_to_id(token)
        return self.num_image_tokens + int(index) if self.pieces.id_to_piece(index) == token else None

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return list(self.pieces.encode(write_whitespace(text), out_type=str))

    def _convert_token_to_id(self, token: str) -> int:
        return self.num_image_tokens + int(self.pieces.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        if index < self.num_image_tokens:
            return f"<image_{index}>"
        # The embedding has rows beyond the last piece.
        return str(self.pieces.id_to_piece(index - self.num_image_tokens)) if index < self.vocab_size else ""

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        skipped = {self.pad_token_id}
        if skip_special_tokens and not self.is_first_revision:
            skipped |= set(self.all_special_ids)
        pieces = [int(token) - self.num_image_tokens for token in ids if token not in skipped]
        # Image tokens and rows of the embedding beyond the last piece have no text.
        text = read_whitespace(self.pieces.decode([p for p in pieces if 0 <= p < self.pieces.vocab_size()]))
        clean_up = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        return self.clean_up_tokenization(text) if clean_up else text
