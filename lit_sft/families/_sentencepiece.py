"""Original sentencepiece BPE models as fast Rust tokenizers, with the ids and texts of the original slow ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

SPACE = "▁"
"""How sentencepiece writes a blank."""

_Piece = sentencepiece_model_pb2.ModelProto.SentencePiece


class SentencePieceTokenizer(PreTrainedTokenizerFast):
    """A sentencepiece BPE model behind the transformers interface, encoded by `tokenizers`.

    Control tokens split the text, and every part between them gets its own dummy prefix, as the slow tokenizers
    of transformers 4 did. Decoding reproduces their blanks around control tokens as well.

    Args:
        model_file: The sentencepiece model.
        control_pattern: Regular expression of the pieces that `encode_text` must not produce, beside control pieces.
        kwargs: Passed on to transformers (special tokens, padding side, `add_bos_token` ...).
    """

    def __init__(self, model_file: str, control_pattern: str, **kwargs: Any) -> None:
        self.model_file = model_file
        self._processor = sentencepiece.SentencePieceProcessor(model_file=model_file)
        proto = sentencepiece_model_pb2.ModelProto.FromString(Path(model_file).read_bytes())
        merges = _merges(proto.pieces)
        self.has_dummy_prefix = bool(proto.normalizer_spec.add_dummy_prefix)
        self._text_tokenizer = _rust_tokenizer(proto, merges, without=re.compile(control_pattern))
        super().__init__(tokenizer_object=_rust_tokenizer(proto, merges), **kwargs)

    def encode_text(self, text: str) -> list[int]:
        """Ids of text that somebody wrote: `</s>` or `<reserved_102>` in it stay ordinary characters."""
        ids: list[int] = self._text_tokenizer.encode(text, add_special_tokens=False).ids
        return ids

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
        special = set(self.all_special_ids)
        ids = [token_ids] if isinstance(token_ids, int) else [int(token) for token in token_ids]
        # Rows beyond the tokenizer exist in some embeddings; they have no text.
        ids = [token for token in ids if token < self._processor.vocab_size()]
        if skip_special_tokens:
            return str(self._processor.decode([token for token in ids if token not in special]))
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
            text += blank + str(self._processor.decode(part)) + self._processor.id_to_piece(token)
            part = []
            previous_is_special = True
        return text + str(self._processor.decode(part))


def _merges(pieces: Sequence[_Piece]) -> list[tuple[str, str]]:
    """Merge rules of a sentencepiece BPE model, best first; the model stores only the merged pieces and their scores."""
    score = {piece.piece: piece.score for piece in pieces if piece.type == _Piece.NORMAL}
    ranked: list[tuple[float, int, str, str]] = []
    for order, merged in enumerate(score):
        for cut in range(1, len(merged)):
            left, right = merged[:cut], merged[cut:]
            if left in score and right in score:
                ranked.append((-score[merged], order, left, right))
    return [(left, right) for _, _, left, right in sorted(ranked, key=lambda rule: rule[:2])]


def _rust_tokenizer(
    proto: Any, merges: list[tuple[str, str]], without: re.Pattern[str] | None = None
) -> Tokenizer:
    """The model in Rust; given `without`, control tokens and the pieces that match it cannot be produced."""
    controls = {p.piece for p in proto.pieces if p.type in (_Piece.CONTROL, _Piece.UNKNOWN)}
    removed = {p.piece for p in proto.pieces if without and (p.piece in controls or without.fullmatch(p.piece))}
    vocab = {p.piece: i for i, p in enumerate(proto.pieces) if p.piece not in removed}
    unknown = next(p.piece for p in proto.pieces if p.type == _Piece.UNKNOWN)
    tokenizer = Tokenizer(
        BPE(
            vocab,
            merges,
            unk_token=unknown if unknown in vocab else None,
            fuse_unk=True,
            byte_fallback=True,
            ignore_merges=True,
        )
    )
    blank = normalizers.Replace(" ", SPACE)
    has_prefix = proto.normalizer_spec.add_dummy_prefix
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), blank] if has_prefix else [blank])
    symbols = [p.piece for p in proto.pieces if p.type == _Piece.USER_DEFINED and p.piece not in removed]
    if symbols:
        pattern = "|".join(re.escape(symbol) for symbol in sorted(symbols, key=len, reverse=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    if without is None:
        tokenizer.add_special_tokens([AddedToken(piece, normalized=False) for piece in sorted(controls, key=vocab.get)])
    return tokenizer


def train_model(
    path: Path, texts: Iterable[str], *, vocab_size: int, symbols: Sequence[str], add_dummy_prefix: bool
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
            minloglevel=2,
        )
