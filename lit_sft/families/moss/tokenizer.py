"""The tokenizer of MOSS: byte-level BPE as in GPT-2, and added tokens for whitespace runs and ends of fields."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AddedToken, BatchEncoding, PreTrainedTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lit_sft.errors import CheckpointError
from lit_sft.families.shared.settings import read_object, setting
from lit_sft.families.shared.tokenizer_data import TokenizerData, added_data, byte_bpe_data

FILES = ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")

END_OF_TEXT = "<|endoftext|>"

FIELD_ENDS = ("<eoh>", "<eot>", "<eoc>", "<eor>", "<eom>")
"""Ends of what the human says, of thoughts, commands and results, and of what MOSS says."""


class Part(NamedTuple):
    """An added token, or text between them: whoever writes `<eom>` alone between two runs writes text."""

    text: str
    is_token: bool


class MossTokenizer(PreTrainedTokenizer):
    r"""Ids and texts of the original slow tokenizer; the pieces between added tokens are encoded in Rust.

    Whitespace on both sides of a run of blanks or tabs is lost, as in the original: the newline of
    "def f():\n    return" never reaches the model. MOSS was trained so; `encode_text` keeps to it by choice, for
    the model has never seen such text otherwise. Decoding joins added tokens to the text with blanks, and tidies
    the blank before a full stop, also as the original.

    Args:
        folder: Where the files of the original tokenizer are.
        added: Ids of the added tokens.
        kwargs: Passed on to transformers (special tokens ...).
    """

    vocab_files_names = {name.partition(".")[0]: name for name in FILES[:3]}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, folder: Path, added: dict[str, int], **kwargs: Any) -> None:
        self.folder = folder
        self.encoder = read_ids(folder / "vocab.json")
        self.decoder = {index: token for token, index in self.encoder.items()}
        self.errors = kwargs.pop("errors", "replace")
        self._merges = read_merges(folder / "merges.txt")
        self._bpe = _byte_level_bpe(self.encoder, self._merges, str(kwargs["unk_token"]))
        # Tokens that are declared as objects keep the whitespace beside them unless their flags say otherwise;
        # all others lose it.
        declared = {str(token): token for token in _special_tokens(kwargs) if isinstance(token, AddedToken)}
        tokens = {**dict.fromkeys(added), **dict.fromkeys(map(str, _special_tokens(kwargs)))}
        self._strips_left = {token for token in tokens if token not in declared or declared[token].lstrip}
        self._strips_right = {token for token in tokens if token not in declared or declared[token].rstrip}
        self._added = added
        self._whole_pattern = _any_of(tokens)
        # Field ends and special tokens that somebody wrote are text; words added to the vocabulary are tokens.
        special = {*FIELD_ENDS, *map(str, _special_tokens(kwargs))}
        self._run_pattern = _any_of(token for token in tokens if token not in special)
        self._added_tokens_decoder = {
            index: AddedToken(
                token,
                lstrip=token in self._strips_left,
                rstrip=token in self._strips_right,
                normalized=False,
                special=not token.isspace(),
            )
            for token, index in added.items()
        }
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        """Pieces without the added tokens."""
        return len(self.encoder)

    def get_vocab(self) -> dict[str, int]:
        """All pieces."""
        return {**self.encoder, **self._added}

    def encode_text(self, text: str) -> list[int]:
        """Ids of text that somebody wrote: `<eom>` in it stays ordinary characters."""
        return self._encode([_parts(self._run_pattern, text)])[0]

    def encode_field(self, text: str, end: str) -> list[int]:
        """Ids of `text`, the control token `end` and a newline, as the original encodes them in one."""
        return self._encode([[*_parts(self._run_pattern, text), Part(end, True), Part("\n", False)]])[0]

    def data(self) -> TokenizerData:
        """What it is, for other languages.

        Raises:
            ConfigError: If a byte is not a piece.
            CheckpointError: If bytes that are not text are to be an error.
        """
        if self.errors != "replace":
            raise CheckpointError(
                f"{self.folder / 'tokenizer_config.json'}: errors is {self.errors!r}; an exported model knows only "
                "'replace', as the release has it. Correct it"
            )
        added = {
            index: AddedToken(token, lstrip=token in self._strips_left, rstrip=token in self._strips_right)
            for token, index in self._added_ids.items()
        }
        parsed = {index for index, token in added.items() if self._run_pattern.fullmatch(token.content)}
        return byte_bpe_data(
            self.encoder,
            self._merges,
            added=added_data(added, parsed),
            skipped=self.all_special_ids,
            joins_added=True,
        )

    def encode_texts(self, texts: Iterable[str]) -> list[list[int]]:
        """Ids of each text, control tokens in it included, in parallel."""
        return self._encode([_parts(self._whole_pattern, text) for text in texts])

    def tokenize(self, text: str, *args: Any, **kwargs: Any) -> list[str]:
        """Pieces of a text."""
        if kwargs.get("split_special_tokens", self.split_special_tokens):
            return [self.decoder[index] for index in self._bpe.encode(text).ids]
        tokens: list[str] = self.convert_ids_to_tokens(self.encode_texts([text])[0])
        return tokens

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Copies of the original files."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        written = []
        for file in (self.folder / name for name in FILES[:4]):
            target = Path(save_directory) / f"{prefix}{file.name}"
            if file.is_file() and file.resolve() != target.resolve():
                shutil.copy(file, target)
            written += [str(target)] * target.is_file()
        return tuple(written)

    def _encode(self, rows: list[list[Part]]) -> list[list[int]]:
        """Ids of rows of added tokens and the text between them."""
        rows = [self._strip(row) for row in rows]
        texts = [part.text for row in rows for part in row if not part.is_token]
        encodings = iter(self._bpe.encode_batch_fast(texts, add_special_tokens=False))
        encoded = []
        for row in rows:
            ids: list[int] = []
            for text, is_token in row:
                ids += [self._added_ids[text]] if is_token else next(encodings).ids
            encoded.append(ids)
        return encoded

    def _strip(self, row: list[Part]) -> list[Part]:
        """Parts without the whitespace that their neighbors swallow; a run can swallow the run beside it."""
        parts = [part for part in row if part.text]
        for i, (text, is_token) in enumerate(parts):
            # Text may spell a token without being one.
            if is_token and text in self._strips_right and i + 1 < len(parts):
                parts[i + 1] = parts[i + 1]._replace(text=parts[i + 1].text.lstrip())
            if is_token and text in self._strips_left and i:
                parts[i - 1] = parts[i - 1]._replace(text=parts[i - 1].text.rstrip())
        return [part for part in parts if part.text]

    @cached_property
    def _added_ids(self) -> dict[str, int]:
        special = {token: self.encoder[token] for token in self.all_special_tokens if token in self.encoder}
        return {**special, **self._added}

    @cached_property
    def _bytes_of_id(self) -> dict[int, bytes]:
        byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
        return {index: bytes(byte_of[c] for c in token) for token, index in self.encoder.items()}

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Texts are encoded in one go before transformers takes the ids over; an empty list it would not take."""
        if text == [] and text_pair is None:
            return BatchEncoding({name: [] for name in self.model_input_names})
        if not (kwargs.get("split_special_tokens") or kwargs.get("is_split_into_words")):
            if isinstance(text, str):
                text = self.encode_texts([text])[0] or ""
            elif isinstance(text, list) and all(isinstance(one, str) for one in text):
                text = [ids or "" for ids in self.encode_texts(text)]
        return super()._encode_plus(text, text_pair, **kwargs)

    def _convert_token_to_id(self, token: str) -> int | None:
        return self.encoder.get(token, self.encoder.get(self.unk_token))

    def _convert_id_to_token(self, index: int) -> str:
        # Rows beyond the tokenizer exist in the embedding; they have no text.
        token: str = self.decoder.get(index, "")
        return token

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of pieces."""
        return self._text(self.encoder[token] for token in tokens)

    def _text(self, ids: Iterable[int]) -> str:
        # Rows beyond the tokenizer exist in the embedding; they have no text.
        return b"".join(self._bytes_of_id.get(index, b"") for index in ids).decode("utf-8", errors=self.errors)

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else [int(token) for token in token_ids]
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        joined: list[str] = []
        part: list[int] = []
        for index in ids:
            if index in skipped:
                continue
            if index not in self._added_tokens_decoder or index in self.decoder:
                part.append(index)
                continue
            if part:
                joined.append(self._text(part))
                part = []
            joined.append(self._added_tokens_decoder[index].content)
        if part:
            joined.append(self._text(part))
        text = " ".join(joined)
        is_tidied = clean_up_tokenization_spaces
        if is_tidied is None:
            is_tidied = self.clean_up_tokenization_spaces
        return str(self.clean_up_tokenization(text)) if is_tidied else text


def load_moss_tokenizer(folder: Path) -> MossTokenizer:
    """The tokenizer of a checkpoint folder.

    Raises:
        CheckpointError: If it lacks one of the tokens that end a field.
    """
    file, declared_file = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    settings, declared, added = read_object(file), read_object(declared_file), field_ends(folder)
    roles = {role: _role(role, declared, settings) for role in ("bos_token", "eos_token", "unk_token")}
    extra = setting(declared_file, declared, "additional_special_tokens", list, [])
    extra = extra or setting(file, settings, "extra_special_tokens", list, [])
    return MossTokenizer(
        folder,
        added,
        **roles,
        # The original has none, and pads with the end token.
        pad_token=roles["eos_token"],
        extra_special_tokens=[_declared(token) for token in extra],
        special_tokens_pattern="bos" if setting(file, settings, "add_bos_token", bool, False) else "none",
        errors=setting(file, settings, "errors", str, "replace"),
        padding_side=setting(file, settings, "padding_side", str, "right"),
        model_max_length=settings.get("model_max_length"),
        clean_up_tokenization_spaces=setting(file, settings, "clean_up_tokenization_spaces", bool, True),
    )


def field_ends(folder: Path) -> dict[str, int]:
    """Ids of the added tokens, those that end a field among them.

    Raises:
        CheckpointError: If it lacks one of these.
    """
    added = read_ids(folder / "added_tokens.json")
    if missing := [token for token in FIELD_ENDS if token not in added]:
        raise CheckpointError(
            f"{folder / 'added_tokens.json'} lacks {', '.join(missing)}: it is not MOSS's. Download it again"
        )
    return added


def read_ids(file: Path) -> dict[str, int]:
    """Ids by token.

    Raises:
        CheckpointError: If something else stands there.
    """
    ids = read_object(file)
    for token, index in ids.items():
        if not isinstance(index, int) or isinstance(index, bool) or index < 0:
            raise CheckpointError(f"{file} gives {token!r} the id {index!r}; expected a whole number")
    return ids


def _role(role: str, declared: dict[str, Any], settings: dict[str, Any]) -> str | AddedToken:
    """special_tokens_map.json counts as it is; the original class makes objects of strings in tokenizer_config.json."""
    if declared.get(role):
        return _declared(declared[role])
    token = _declared(settings.get(role) or END_OF_TEXT)
    return AddedToken(token) if isinstance(token, str) else token


def _special_tokens(kwargs: dict[str, Any]) -> Sequence[str | AddedToken]:
    return [*kwargs["extra_special_tokens"], *(kwargs[f"{role}_token"] for role in ("bos", "eos", "unk"))]


def _declared(token: str | dict[str, Any]) -> str | AddedToken:
    if not isinstance(token, dict):
        return token
    return AddedToken(token["content"], lstrip=token.get("lstrip", False), rstrip=token.get("rstrip", False))


def _parts(pattern: re.Pattern[str], text: str) -> list[Part]:
    """The tokens of a pattern of `_any_of` and the text around them, which may be empty."""
    return [Part(part, index % 2 == 1) for index, part in enumerate(pattern.split(text))]


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Pattern that splits a text into the longest of the tokens and what stands between them."""
    return re.compile("(" + "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) + ")")


def read_merges(file: Path) -> list[tuple[str, str]]:
    """Pairs of pieces, those that are merged first first."""
    # The first line is a version, the last is empty.
    lines = file.read_text(encoding="utf-8").split("\n")[1:-1]
    return [(left, right) for left, right in (line.split() for line in lines)]


def _byte_level_bpe(vocab: dict[str, int], merges: list[tuple[str, str]], unk_token: str) -> Tokenizer:
    tokenizer = Tokenizer(BPE(vocab, merges, unk_token=unk_token))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)
    return tokenizer
