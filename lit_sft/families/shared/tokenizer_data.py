"""What a tokenizer needs in a language without transformers; `cpp/src/tokenizer.h` reads it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lit_sft.errors import ConfigError
from lit_sft.families.shared.sentencepiece_file import CONTROL, UNKNOWN, read_model, with_controls

ASSIGNED = range(0x40000)
"""Code points that can be letters, numbers or blanks: Unicode has none of these beyond the third plane."""
SURROGATES = range(0xD800, 0xE000)


class TokenizerData(NamedTuple):
    """The content of a configuration, and a sentencepiece model where there is one.

    Keys of `config`; ids of tokens are those of the network:

        kind        sentencepiece, byte-bpe
        skipped     ids that decoding drops before anything else
        texts       what decoding writes for an id, where the model alone does not say so
        added       tokens beside the pieces: id, text; parsed: a text may spell it; lstrip, rstrip: it swallows blanks

    Of sentencepiece: first_id (of the first piece), writes_whitespace (line ends, tabs and runs of blanks become
    pieces, as in ChatGLM-6B), strips_prefix (decoding drops the blank before a text: no, one, all of them).

    Of byte-bpe: pieces (each character is a byte), merges (ids of left, right and both), letters, numbers and blanks
    (ranges of code points, as the pattern of GPT-2 means them), joins_added (decoding sets blanks between texts and
    added tokens), split (texts that are encoded on their own), dropped (characters that are).
    """

    config: dict[str, Any]
    model: bytes | None = None


def sentencepiece_data(
    model: bytes,
    *,
    controls: Collection[int] = (),
    texts: Mapping[int, str] | None = None,
    skipped: Collection[int] = (),
    added: Mapping[int, AddedToken] | None = None,
    first_id: int = 0,
    writes_whitespace: bool = False,
) -> TokenizerData:
    """Data of a sentencepiece model.

    Args:
        model: Its bytes.
        controls: Pieces that no text may produce beside those that are control pieces already.
        texts: What decoding writes for ids, where not what the model says.
        skipped: Ids that decoding drops.
        added: Tokens behind the pieces.
        first_id: Of the first piece.
        writes_whitespace: As in ChatGLM-6B.

    Raises:
        ConfigError: If an added token swallows blanks or must be a word.
    """
    content = read_model(model)
    prefix = "all" if content.removes_extra_blanks else "one" if content.has_dummy_prefix else "no"
    silent = {
        first_id + index: "" if piece.kind == CONTROL else " \u2047 "
        for index, piece in enumerate(content.pieces)
        if piece.kind in (CONTROL, UNKNOWN)
    }
    config: dict[str, Any] = {
        "kind": "sentencepiece",
        "first_id": first_id,
        "writes_whitespace": writes_whitespace,
        "strips_prefix": prefix,
        "texts": {str(index): text for index, text in sorted({**silent, **(texts or {})}.items())},
        "skipped": sorted(skipped),
        "added": added_data(added or {}, {i for i, token in (added or {}).items() if not token.special}),
    }
    if any(token["lstrip"] or token["rstrip"] for token in config["added"]):
        raise ConfigError(f"added tokens that swallow blanks beside them {REFUSED}")
    return TokenizerData(config, with_controls(model, controls) if controls else model)


REFUSED = "are not supported in an exported model, which then takes ids only"


def added_data(added: Mapping[int, AddedToken], parsed: Collection[int]) -> list[dict[str, Any]]:
    """Added tokens in the order of their ids.

    Raises:
        ConfigError: If one of them must be a word.
    """
    if any(token.single_word for token in added.values()):
        raise ConfigError(f"added tokens that must be words (single_word) {REFUSED}")
    return [
        {"id": i, "text": token.content, "lstrip": token.lstrip, "rstrip": token.rstrip, "parsed": i in parsed}
        for i, token in sorted(added.items())
    ]


def byte_bpe_data(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    added: list[dict[str, Any]],
    skipped: Collection[int],
    joins_added: bool = False,
    split: Sequence[str] = (),
    dropped: str = "",
) -> TokenizerData:
    """Data of a byte-level BPE with the pattern of GPT-2; `vocab` and `merges` are written in its alphabet.

    Raises:
        ConfigError: If a byte is not a piece.
    """
    byte_of = {character: chr(byte) for byte, character in bytes_to_unicode().items()}
    if missing := [character for character in byte_of if character not in vocab]:
        raise ConfigError(f"the vocabulary lacks {len(missing)} of the 256 bytes, so not every text can be encoded")
    pieces: list[str | None] = [None] * (max(vocab.values()) + 1)
    for piece, index in vocab.items():
        if all(character in byte_of for character in piece):
            pieces[index] = "".join(byte_of[character] for character in piece)
        else:
            pieces[index] = piece.encode().decode("latin-1")
    letters, numbers, blanks = (_ranges(pattern) for pattern in (r"\p{L}+", r"\p{N}+", r"\s+"))
    return TokenizerData(
        {
            "kind": "byte-bpe",
            "pieces": pieces,
            "merges": [[vocab[left], vocab[right], vocab[left + right]] for left, right in merges],
            "letters": letters,
            "numbers": numbers,
            "blanks": blanks,
            "texts": {},
            "skipped": sorted(skipped),
            "added": added,
            "joins_added": joins_added,
            "split": list(split),
            "dropped": dropped,
        }
    )


def is_gpt2_like(tokenizer: Tokenizer) -> bool:
    """Whether a Rust tokenizer cuts a text with the pattern of GPT-2 and nothing else, and merges bytes."""
    pre_tokenizer, model = tokenizer.pre_tokenizer, tokenizer.model
    return (
        type(model).__name__ == "BPE"
        and tokenizer.normalizer is None
        and isinstance(pre_tokenizer, pre_tokenizers.ByteLevel)
        and pre_tokenizer.use_regex
        and not pre_tokenizer.add_prefix_space
        and not (model.ignore_merges or model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix)
    )


@cache
def _ranges(pattern: str) -> list[list[int]]:
    """First and last code points of stretches that match, as the Rust library sees them."""
    points = [point for point in ASSIGNED if point not in SURROGATES]
    found = pre_tokenizers.Split(Regex(pattern), "removed", invert=True).pre_tokenize_str("".join(map(chr, points)))
    ranges = []
    for _, (start, end) in found:
        first, last = points[start], points[end - 1]
        if first < SURROGATES.start < last:
            ranges += [[first, SURROGATES.start - 1], [SURROGATES.stop, last]]
        else:
            ranges.append([first, last])
    return ranges
