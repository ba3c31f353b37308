"""Ids and labels of an example; tested on ids, never on strings."""

import pytest
from fakes import END, USER, LetterFormat, LetterTokenizer

from lit_sft.conversation import IGNORE_INDEX, Conversation, Example, Message
from lit_sft.data.encode import encode_conversation
from lit_sft.errors import BadRecord

X = IGNORE_INDEX
A, B, C, D = (ord(char) for char in "ABCD")


def talk(*texts: str) -> Conversation:
    roles = ("user", "assistant")
    return Conversation([Message(roles[i % 2], text) for i, text in enumerate(texts)], "file:1")  # type: ignore[arg-type]


def encode(conversation: Conversation, max_length: int = 100, **options: str) -> Example:
    return encode_conversation(
        conversation,
        LetterFormat(),
        LetterTokenizer(),
        max_length=max_length,
        **options,  # type: ignore[arg-type]
    )


def test_prompt_tokens_carry_no_loss_and_the_end_of_turn_does() -> None:
    example = encode(talk("A", "B"))
    assert example.input_ids == [USER, A, B, END]
    assert example.labels == [X, X, B, END]


def test_every_answer_is_supervised_by_default() -> None:
    assert encode(talk("A", "B", "C", "D")).labels == [X, X, B, END, X, X, D, END]


def test_loss_on_the_last_answer_only() -> None:
    assert encode(talk("A", "B", "C", "D"), loss_on="last").labels == [X, X, X, X, X, X, D, END]


def test_loss_on_everything() -> None:
    assert encode(talk("A", "B"), loss_on="all").labels == [USER, A, B, END]


def test_whole_turns_are_dropped_from_the_end() -> None:
    example = encode(talk("A", "B", "C", "DDDD"), max_length=8)
    assert example.input_ids == [USER, A, B, END]
    assert example.truncation == "turns-dropped"


def test_a_turn_that_fits_exactly_stays_whole() -> None:
    example = encode(talk("A", "B", "C", "D"), max_length=8)
    assert len(example) == 8
    assert example.truncation == ""


def test_the_only_reply_is_cut_and_loses_its_end_of_turn() -> None:
    example = encode(talk("A", "BBBB"), max_length=4)
    assert example.input_ids == [USER, A, B, B]
    assert example.labels == [X, X, B, B]
    assert example.truncation == "reply-cut"


def test_with_loss_on_the_last_answer_it_is_the_last_one_kept() -> None:
    assert encode(talk("A", "B", "C", "DDDD"), max_length=8, loss_on="last").labels == [X, X, B, END]


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused() -> None:
    with pytest.raises(BadRecord, match="prompt-too-long"):
        encode(talk("AAAA", "B"), max_length=5)


def test_a_question_without_an_answer_is_refused() -> None:
    with pytest.raises(BadRecord, match="no-answer"):
        encode(talk("A"))


def test_an_unanswered_last_question_is_left_out() -> None:
    assert encode(talk("A", "B", "C")).input_ids == [USER, A, B, END]


def test_the_source_of_the_record_stays_with_the_example() -> None:
    assert encode(talk("A", "B")).source == "file:1"


def unsupervised(conversation: Conversation, *places: int) -> Conversation:
    """The same, with no loss on the messages at these places."""
    messages = [m._replace(is_supervised=i not in places) for i, m in enumerate(conversation.messages)]
    return Conversation(messages, conversation.source)


def test_an_answer_marked_so_is_read_and_carries_no_loss() -> None:
    conversation = unsupervised(talk("A", "B", "C", "D"), 1)
    assert encode(conversation).input_ids == encode(talk("A", "B", "C", "D")).input_ids
    assert encode(conversation).labels == [X, X, X, X, X, X, D, END]
    assert encode(conversation, loss_on="all").labels == [USER, A, X, X, USER, C, D, END]


def test_a_record_without_a_supervised_answer_that_fits_is_left_out() -> None:
    for conversation, max_length in ((unsupervised(talk("A", "B", "C", "D"), 1, 3), 100), (talk("A", "B"), 100)):
        with pytest.raises(BadRecord, match="no-supervised-answer"):
            encode(unsupervised(conversation, 1, 3), max_length)
    with pytest.raises(BadRecord, match="no-supervised-answer"):
        encode(unsupervised(talk("A", "B", "C", "DDDD"), 1), max_length=8)
