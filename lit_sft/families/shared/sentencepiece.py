"""Original sentencepiece BPE models as fast Rust tokenizers, with the ids and texts of the original slow ones."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import BatchEncoding, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils.generic import PaddingStrategy

from lit_sft.errors import ConfigError
from lit_sft.families.shared.added_tokens import behind
from lit_sft.families.shared.sentencepiece_file import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Model,
    Piece,
    open_processor,
    read_model,
)
from lit_sft.families.shared.settings import read_object
from lit_sft.families.shared.token_ids import TokenIdCache

# Options of transformers' call that need the Rust tokenizer, and those that concern padding only.
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

NOTHING = "(?!)"
"""Matches nothing."""

SPACE = "▁"
"""How sentencepiece writes a blank."""


class SentencePieceTokenizer(TokenIdCache, PreTrainedTokenizerFast):
    """A sentencepiece BPE model behind the transformers interface.

    Plain text is encoded by the sentencepiece library, on all cores, which is several times faster than its Rust copy;
    what it does not offer (control tokens in a text, offsets, pairs) is done by `tokenizers`, with the same ids. So the
    answer to a call knows `tokens()`, `word_ids()` and `char_to_token()` only if `return_offsets_mapping=True` asks
    for more than ids; `tokenize` always works.

    Control tokens split the text, and every part between them gets its own dummy prefix, as the slow tokenizers
    of transformers 4 did. Decoding reproduces their blanks around control tokens as well.

    Args:
        model_file: The sentencepiece model.
        control_pattern: Regular expression of the pieces that `encode_text` must not produce, beside control pieces.
            None if there are none.
        appended: Control tokens that follow the pieces of the model, in the order of their ids.
        parsed: Control tokens that a text may spell out; all of them if not given.
        added: Tokens that somebody added to the vocabulary, by id. A text may spell them unless they are special.
        kwargs: Passed on to transformers (special tokens, padding side, `add_bos_token` ...).
    """

    def __init__(
        self,
        model_file: str,
        control_pattern: str | None,
        *,
        appended: Sequence[str] = (),
        parsed: Sequence[str] | None = None,
        added: Mapping[int, AddedToken] | None = None,
        **kwargs: Any,
    ) -> None:
        self.model_file = model_file
        serialized = Path(model_file).read_bytes()
        self._processor = open_processor(serialized)
        model = read_model(serialized)
        merges = _merges(model.pieces)
        self.has_dummy_prefix = model.has_dummy_prefix
        model.pieces.extend(Piece(text, CONTROL) for text in appended)
        ids = {piece.text: index for index, piece in enumerate(model.pieces)}
        self.added = behind(len(ids), dict(added or {}), ids.get, model_file)
        spelt = {index: token for index, token in self.added.items() if not token.special}
        controls = re.compile(control_pattern or NOTHING)
        # What sentencepiece alone would encode otherwise.
        self._careful = re.compile(
            "|".join([controls.pattern, *(re.escape(token.content) for token in spelt.values())])
        )
        is_careful = bool(control_pattern or spelt)
        self._text_tokenizer = _rust_tokenizer(model, merges, spelt, without=controls) if is_careful else None
        super().__init__(tokenizer_object=_rust_tokenizer(model, merges, self.added, parsed=parsed), **kwargs)

    def encode_text(self, text: str) -> list[int]:
        """Ids of text that somebody wrote: `</s>` or `<reserved_102>` in it stay ordinary characters."""
        if self._text_tokenizer is None or not self._careful.search(text):
            # No text makes sentencepiece produce a control piece, and it is several times faster.
            return list(self._processor.encode(text))
        return list(self._text_tokenizer.encode(text, add_special_tokens=False).ids)

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
        """Ids of plain texts by sentencepiece, of others by `tokenizers`."""
        texts = [text] if isinstance(text, str) else text
        adds_tokens = add_special_tokens and (self.add_bos_token or self.add_eos_token)
        is_plain = (
            text_pair is None
            and not adds_tokens
            and truncation_strategy == TruncationStrategy.DO_NOT_TRUNCATE
            and options.get("return_attention_mask") is not False
            and not any(options.get(name) for name in UNKNOWN_TO_SENTENCEPIECE)
            and all(isinstance(item, str) for item in texts)
        )
        if texts and not is_plain:
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
        rows = [prefix + ids for ids in self._encode_batch(list(texts), split_special_tokens)]
        batch: dict[str, Any] = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
        if isinstance(text, str) and options.get("return_tensors") is None:
            batch = {name: values[0] for name, values in batch.items()}
        if padding_strategy == PaddingStrategy.DO_NOT_PAD:
            return BatchEncoding(batch, tensor_type=options.get("return_tensors"))
        padding = {name: options[name] for name in PADDING_OPTIONS if name in options}
        return self.pad(batch, padding=padding_strategy, max_length=max_length, **padding)

    def _encode_batch(self, texts: list[str], split_special_tokens: bool | None) -> list[list[int]]:
        """Ids without any that are set before or behind a text; only those that spell a control token take longer."""
        is_split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        added = [token.content for token in self.added.values() if not token.special]
        spelt = added if is_split else list(self.added_tokens_encoder)
        others = [index for index, text in enumerate(texts) if any(token in text for token in spelt)]
        rows: list[list[int]] = self._processor.encode(texts)
        if others:
            chosen = [texts[index] for index in others]
            encoded = super()._encode_plus(chosen, add_special_tokens=False, split_special_tokens=is_split)
            for index, ids in zip(others, encoded["input_ids"], strict=True):
                rows[index] = ids
        return rows

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        """The pieces of a text."""
        ids = self._encode_plus(text, pair, add_special_tokens=add_special_tokens, **kwargs)["input_ids"]
        tokens = self.convert_ids_to_tokens(ids)
        assert isinstance(tokens, list)
        return tokens

    @contextmanager
    def _padding_token(self) -> Iterator[None]:
        """Pad with <unk> where no padding token is named, as Baichuan-7B does; afterwards there is none again."""
        named = self.special_tokens_map.get("pad_token")
        self.pad_token = named or self.unk_token
        try:
            yield
        finally:
            self.pad_token = named

    def _get_padding_truncation_strategies(self, *args: Any, **kwargs: Any) -> Any:
        with self._padding_token():
            return super()._get_padding_truncation_strategies(*args, **kwargs)

    def set_truncation_and_padding(self, *args: Any, **kwargs: Any) -> None:
        """Tell the Rust tokenizer what to cut and to fill up."""
        with self._padding_token():
            super().set_truncation_and_padding(*args, **kwargs)

    def _pad(self, *args: Any, **kwargs: Any) -> Any:
        with self._padding_token():
            return super()._pad(*args, **kwargs)

    def _add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        if unknown := [token for token in map(str, new_tokens) if self.backend_tokenizer.token_to_id(token) is None]:
            raise ConfigError(
                f"{', '.join(map(repr, unknown))}: no token can be added, the vocabulary is that of {self.model_file} "
                "and added_tokens.json beside it"
            )
        super()._add_tokens(new_tokens, special_tokens=special_tokens)
        return 0

    @property
    def prefix_ids(self) -> list[int]:
        """Ids that stand before every text, beside <s>."""
        return []

    @property
    def saved_settings(self) -> dict[str, Any]:
        """What tokenizer_config.json keeps beside the settings that transformers writes."""
        return {"add_bos_token": self.add_bos_token, "add_eos_token": self.add_eos_token}

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """Also the sentencepiece model, which our families load; tokenizer.json alone is for plain transformers."""
        folder, source = Path(save_directory), Path(self.model_file)
        # The folder may be the one that the tokenizer came from.
        settings_file = source.with_name("tokenizer_config.json")
        original = read_object(settings_file)
        files = super().save_pretrained(save_directory, *args, **kwargs)
        written = read_object(folder / "tokenizer_config.json")
        if self.added:
            flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
            written["added_tokens_decoder"] = {
                str(index): {flag: getattr(token, flag) for flag in flags} for index, token in self.added.items()
            }
        # By these two, other loaders and ours recognize the model.
        names = {key: original[key] for key in ("name_or_path", "tokenizer_class") if key in original}
        content = json.dumps(written | names | self.saved_settings, indent=2, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(content + "\n", encoding="utf-8")
        copy = folder / "tokenizer.model"
        if source.resolve() != copy.resolve():
            shutil.copyfile(source, copy)
        return (*files, str(copy))

    def plain(self) -> PreTrainedTokenizerFast:
        """A tokenizer with the same ids that plain transformers saves and loads.

        It decodes normal text alike, but sets none of the blanks of the slow tokenizers around control tokens.
        """
        rust = Tokenizer.from_str(self.backend_tokenizer.to_str())
        steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        if self.has_dummy_prefix:
            steps.append(decoders.Strip(content=" ", left=1))
        rust.decoder = decoders.Sequence(steps)
        return PreTrainedTokenizerFast(
            tokenizer_object=rust,
            **self.special_tokens_map,
            padding_side=self.padding_side,
            model_max_length=self.model_max_length,
            clean_up_tokenization_spaces=False,
        )

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        special = {*self.all_special_ids, *(index for index, token in self.added.items() if token.special)}
        ids = [token_ids] if isinstance(token_ids, int) else [int(token) for token in token_ids]
        # Rows beyond the tokenizer exist in some embeddings; they have no text.
        ids = [token for token in ids if token < self._processor.vocab_size() or token in self.added]
        if skip_special_tokens:
            return self._joined([token for token in ids if token not in special])
        text = ""
        part: list[int] = []
        previous_is_special = False
        for position, token in enumerate(ids):
            if token not in special:
                part.append(token)
                previous_is_special = False
                continue
            # transformers 4 set a blank before the text that precedes a special token.
            blank = " " if position and not previous_is_special else ""
            name = self.added[token].content if token in self.added else self._processor.id_to_piece(token)
            text += blank + self._joined(part) + name
            part = []
            previous_is_special = True
        return text + self._joined(part)

    def _joined(self, ids: list[int]) -> str:
        """Text of pieces and added tokens; each stretch of pieces loses its own dummy prefix."""
        if self.added.keys().isdisjoint(ids):
            return self._decoded(ids)
        stretches = ((token, [*stretch]) for token, stretch in groupby(ids, key=self.added.get))
        return "".join(token.content * len(part) if token else self._decoded(part) for token, part in stretches)

    def _decoded(self, ids: list[int]) -> str:
        return str(self._processor.decode(ids))


def _merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Merge rules of a sentencepiece BPE model, best first; it stores only the merged pieces and their scores."""
    # Sentencepiece joins two neighbors whenever the joined text is a piece, the one with the best score first, however
    # it was made in training. A Rust BPE knows only pairs with ranks. So every cut of a piece into two pieces becomes a
    # rule, with the rank of the piece's score: then both join the same neighbors in the same order. Sorted by score
    # alone, and in the order of the model where scores are equal, the rules of one piece stay side by side.
    score = {piece.text: piece.score for piece in pieces if piece.kind == NORMAL}
    ranked: list[tuple[float, int, str, str]] = []
    for order, merged in enumerate(score):
        for cut in range(1, len(merged)):
            left, right = merged[:cut], merged[cut:]
            if left in score and right in score:
                ranked.append((-score[merged], order, left, right))
    return [(left, right) for _, _, left, right in sorted(ranked, key=lambda rule: rule[:2])]


def _rust_tokenizer(
    model: Model,
    merges: list[tuple[str, str]],
    added: Mapping[int, AddedToken],
    *,
    without: re.Pattern[str] | None = None,
    parsed: Sequence[str] | None = None,
) -> Tokenizer:
    """The model in Rust; given `without`, control tokens and the pieces that match it cannot be produced.

    Added tokens are in its vocabulary, where no merge leads to them, so that they keep their ids.
    """
    controls = {p.text for p in model.pieces if p.kind in (CONTROL, UNKNOWN)}
    removed = {p.text for p in model.pieces if without and (p.text in controls or without.fullmatch(p.text))}
    vocab = {p.text: i for i, p in enumerate(model.pieces) if p.text not in removed}
    vocab |= {token.content: index for index, token in added.items()}
    unknown = next(p.text for p in model.pieces if p.kind == UNKNOWN)
    symbols = [p.text for p in model.pieces if p.kind == USER_DEFINED and p.text not in removed]
    tokenizer = Tokenizer(
        BPE(
            vocab,
            merges,
            unk_token=unknown if unknown in vocab else None,
            fuse_unk=True,
            byte_fallback=True,
            # A symbol cut out of the text is one token, though no merge leads to it.
            ignore_merges=bool(symbols),
        )
    )
    blank = normalizers.Replace(" ", SPACE)
    prefix = [normalizers.Prepend(SPACE)] if model.has_dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, blank])
    if symbols:
        pattern = "|".join(re.escape(symbol) for symbol in sorted(symbols, key=len, reverse=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    if without is None:
        matched = sorted(controls if parsed is None else parsed, key=vocab.__getitem__)
        tokenizer.add_special_tokens([AddedToken(piece, normalized=False) for piece in matched])
    tokenizer.add_special_tokens([token for token in added.values() if token.special])
    tokenizer.add_tokens([token for token in added.values() if not token.special])
    return tokenizer


def train_model(
    path: Path,
    texts: Iterable[str],
    *,
    vocab_size: int,
    symbols: Sequence[str],
    add_dummy_prefix: bool,
) -> None:
    """Train a small BPE model with byte fallback and split digits, as the original tokenizers are.

    Args:
        path: File to write.
        texts: What to train on.
        vocab_size: Upper bound on the number of pieces; little text yields fewer.
        symbols: User-defined pieces, which get the ids from 3 on.
        add_dummy_prefix: Whether text is encoded with a blank before it.
    """
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=file,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            split_digits=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=add_dummy_prefix,
            user_defined_symbols=list(symbols),
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            max_sentence_length=1 << 20,
            # Little text would make whole sentences one piece, and nothing could be learned of their parts.
            max_sentencepiece_length=2,
            minloglevel=2,
        )
