"""A tokenizer from its data alone, as the C++ runner reads it: at export it proves that nothing is missing there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lit_sft.families.chatglm.tokenizer import write_whitespace
from lit_sft.families.shared.sentencepiece_file import open_processor
from lit_sft.families.shared.tokenizer_data import TokenizerData


class DataTokenizer:
    """Encodes texts and tokens.

    Args:
        data: What a family says of its tokenizer.
    """

    def __init__(self, data: TokenizerData) -> None:
        self.config = data.config
        self.added = {token["id"]: token for token in self.config["added"]}
        self._parsed: dict[str, int] = {token["text"]: token["id"] for token in self.config["added"] if token["parsed"]}
        self._cuts = _any_of([*self._parsed, *self.config.get("split", [])])
        self._dropped = dict.fromkeys(map(ord, self.config.get("dropped", "")))
        if data.model is not None:
            self._processor = open_processor(data.model)

    def encode(self, parts: Sequence[str | int]) -> list[int]:
        """Ids of texts and tokens in one go: an added token may swallow blanks of its neighbors."""
        cut: list[str | int] = []
        for part in parts:
            if isinstance(part, int):
                cut.append(part)
            else:
                texts = self._cuts.split(part.translate(self._dropped))
                for index, text in enumerate(texts):
                    cut.append(self._parsed.get(text, text) if index % 2 else text)
        ids: list[int] = []
        for part in self._swallowed([part for part in cut if part != ""]):
            ids += [part] if isinstance(part, int) else self._encode_text(part)
        return ids

    def _swallowed(self, parts: list[str | int]) -> list[str | int]:
        for position, part in enumerate(parts):
            token = self.added.get(part) if isinstance(part, int) else None
            if token is None:
                continue
            for flag, neighbor in (("rstrip", position + 1), ("lstrip", position - 1)):
                if token[flag] and 0 <= neighbor < len(parts):
                    parts[neighbor] = self._stripped(parts[neighbor], from_left=flag == "rstrip")
        return [part for part in parts if part != ""]

    def _stripped(self, part: str | int, *, from_left: bool) -> str | int:
        text = self.added[part]["text"] if isinstance(part, int) else part
        left = text.lstrip() if from_left else text.rstrip()
        # A run of blanks that is swallowed is gone, and swallows nothing itself.
        return part if isinstance(part, int) and left else left

    def _encode_text(self, text: str) -> list[int]:
        if self.config["kind"] == "byte-bpe":
            return list(self._bpe.encode(text, add_special_tokens=False).ids)
        written = write_whitespace(text) if self.config["writes_whitespace"] else text
        first = self.config["first_id"]
        return [first + index for index in self._processor.encode(written)]

    @cached_property
    def _bpe(self) -> Tokenizer:
        alphabet = bytes_to_unicode()
        pieces = ["".join(alphabet[ord(byte)] for byte in piece or "") for piece in self.config["pieces"]]
        vocab = {piece: index for index, piece in enumerate(pieces) if piece}
        tokenizer = Tokenizer(BPE(vocab, [(pieces[left], pieces[right]) for left, right, _ in self.config["merges"]]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return tokenizer


def _any_of(texts: list[str]) -> re.Pattern[str]:
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("(" + ("|".join(map(re.escape, longest_first)) or "(?!)") + ")")
