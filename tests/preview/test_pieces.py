"""Tokens of every family become text that one can read, and nothing else."""

from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest

from lit_sft import Conversation, Message, open_checkpoint
from lit_sft.checkpoint.opening import families
from lit_sft.checkpoint.tiny import demo_texts
from lit_sft.conversation import IGNORE_INDEX
from lit_sft.display import visible
from lit_sft.families._base import TinySize
from lit_sft.preview.pieces import Piece, PieceReader

SIZE = TinySize(hidden_size=32, intermediate_size=48, num_layers=1, num_heads=4, vocab_size=1400, context_length=256)
QUESTIONS = ("镇长叫什么？", "𠮷野家🦙在哪里？")
# These write earlier rounds into the prompt of the last.
LAST_ANSWER_ONLY = {"chatglm-6b", "chatglm2-6b"}
ANSWERS = ("镇长名叫周叶。", "I say: 鑫淼🦙, </s> and <eom>.")


def reader_of(name: str, folder: Path) -> tuple[Any, PieceReader]:
    folder.mkdir()
    families()[name].write_tiny(folder, demo_texts(), SIZE)
    checkpoint = open_checkpoint(folder, name)
    return checkpoint, PieceReader(checkpoint.load_tokenizer())


def text_of(pieces: list[Piece]) -> str:
    """Without the full-width signs that ChatGLM-6B's tokenizer makes half as wide."""
    return normalize("NFKC", "".join(piece.text for piece in pieces if not piece.is_control))


@pytest.mark.parametrize("name", sorted(families()))
def test_supervised_text_is_the_answers_and_their_end_of_turn(name: str, tmp_path: Path) -> None:
    checkpoint, reader = reader_of(name, tmp_path / "tiny")
    tokenizer = checkpoint.load_tokenizer()
    messages = [
        message
        for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
        for message in (Message("user", question), Message("assistant", answer))
    ]
    example = checkpoint.prompt_format.encode(Conversation(messages), tokenizer)
    pieces = reader.read(example.input_ids, example.labels)
    assert [token for piece in pieces for token in piece.ids] == list(example.input_ids)
    assert [label for piece in pieces for label in piece.labels] == list(example.labels)
    for piece in pieces:
        assert len({label == IGNORE_INDEX for label in piece.labels}) == 1
        assert "\N{REPLACEMENT CHARACTER}" not in piece.text
    whole = text_of(pieces)
    for said in (*QUESTIONS, *ANSWERS):
        assert normalize("NFKC", said) in whole
    supervised = text_of([piece for piece in pieces if piece.is_supervised])
    trained = ANSWERS[-1:] if name in LAST_ANSWER_ONLY else ANSWERS
    assert "".join(supervised.split()) == "".join(normalize("NFKC", "".join(trained)).split())
    ends = {token for piece in pieces if piece.is_supervised and piece.is_control for token in piece.labels}
    assert ends & set(checkpoint.prompt_format.stop_token_ids(tokenizer))


@pytest.mark.parametrize("name", ["baichuan-7b", "moss", "chatglm-6b"])
def test_a_character_that_was_cut_and_ids_without_a_piece_are_not_garbage(name: str, tmp_path: Path) -> None:
    checkpoint, reader = reader_of(name, tmp_path / "tiny")
    tokenizer = checkpoint.load_tokenizer()
    ids = [*tokenizer.encode_text("🦙")[:-1], tokenizer.encode_text("好")[-1], len(tokenizer) + 5]
    pieces = reader.read(ids, [IGNORE_INDEX] * len(ids))
    assert [token for piece in pieces for token in piece.ids] == ids
    assert visible("".join(piece.text for piece in pieces)).isprintable()
    assert pieces[-1].is_control


def test_text_that_spells_a_control_token_is_told_from_one(tiny_folder: Path) -> None:
    tokenizer: Any = open_checkpoint(tiny_folder).load_tokenizer()
    ids = [*tokenizer.encode_text("</s>"), tokenizer.eos_token_id]
    pieces = PieceReader(tokenizer).read(ids, ids)
    assert "".join(piece.text for piece in pieces[:-1]).strip() == "</s>"
    assert [piece.is_control for piece in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\tc", "a⏎b⇥c"),
        ("\x1b[31mred\x07\x00", "␛[31mred␇␀"),
        ("\x9b2J\x7f", "\\u{9b}2J\\u{7f}"),
        ("\u202eabc\u200b\u2028", "\\u{202e}abc\\u{200b}\\u{2028}"),
        ("\ud800\ue000", "\\u{d800}\\u{e000}"),
        ("全角　空格 𠮷é", "全角　空格 𠮷é"),
    ],
)
def test_nothing_in_a_text_steers_a_terminal(text: str, shown: str) -> None:
    assert visible(text) == shown
