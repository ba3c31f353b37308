"""The validation split."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lit_sft.conversation import Conversation, Message
from lit_sft.data.scan import fingerprint
from lit_sft.data.split import held_out, is_first


def prints(*texts: object) -> NDArray[np.uint64]:
    said = (Conversation([Message("user", str(text)), Message("assistant", "ok")]) for text in texts)
    return np.array([fingerprint(conversation.said()) for conversation in said], dtype=np.uint64)


def test_duplicates_never_stand_on_both_sides() -> None:
    fingerprints = prints(*(i % 30 for i in range(300)))
    chosen = held_out(fingerprints, 0.2, seed=1)
    assert not {*fingerprints[chosen]} & {*fingerprints[~chosen]}
    assert chosen.sum() == 60


def test_the_split_does_not_depend_on_the_order_of_the_file() -> None:
    fingerprints = prints(*range(50))
    assert (held_out(fingerprints, 0.1, seed=1) == held_out(fingerprints[::-1], 0.1, seed=1)[::-1]).all()


def test_another_seed_holds_out_others() -> None:
    assert (held_out(prints(*range(100)), 0.1, seed=1) != held_out(prints(*range(100)), 0.1, seed=2)).any()


@given(st.lists(st.integers(0, 2**64 - 1), max_size=60), st.floats(0, 0.99), st.integers(0, 2**40))
def test_the_share_is_that_of_the_distinct_conversations(values: list[int], fraction: float, seed: int) -> None:
    fingerprints = np.array(values, dtype=np.uint64)
    num_held_out = len({*fingerprints[held_out(fingerprints, fraction, seed)]})
    distinct = len({*values})
    if distinct > 1 and fraction > 0:
        assert num_held_out == min(max(round(fraction * distinct), 1), distinct - 1)
    else:
        assert num_held_out == (0 if fraction == 0 else round(fraction * distinct))


def test_a_small_corpus_holds_out_at_least_one_and_keeps_at_least_one() -> None:
    assert held_out(prints("a", "b"), 0.01, seed=1).sum() == 1
    assert held_out(prints("a", "b"), 0.99, seed=1).sum() == 1


def test_the_first_of_equal_conversations_is_kept() -> None:
    assert is_first(prints("a", "b", "a", "c", "b")).tolist() == [True, True, False, True, False]


def test_a_fingerprint_sees_all_that_is_said_and_where_messages_end() -> None:
    def of(*messages: Any) -> int:
        return fingerprint(Conversation(messages).said())

    user, answer = Message("user", "ab"), Message("assistant", "c")
    others = [
        of(user, Message("assistant", "c", name="x")),
        of(Message("user", "a"), Message("assistant", "bc")),
        of(Message("system", "ab"), answer),
        of(user, Message("assistant", "c", thoughts="t")),
        of(user, Message("assistant", "c", commands="t")),
        of(user),
    ]
    assert len({of(user, answer), *others}) == 7
