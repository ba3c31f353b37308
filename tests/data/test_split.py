"""The validation split."""

from lit_sft.conversation import Conversation, Message
from lit_sft.data.split import fingerprint, split_off


def said(text: str) -> Conversation:
    return Conversation([Message("user", text), Message("assistant", "ok")])


def test_duplicates_never_stand_on_both_sides() -> None:
    fingerprints = [fingerprint(said(f"{i % 30}"), seed=1) for i in range(300)]
    train, validation = split_off(fingerprints, 0.2)
    assert not {fingerprints[i] for i in train} & {fingerprints[i] for i in validation}
    assert sorted(train + validation) == list(range(300))
    assert len(validation) == 60


def test_the_split_does_not_depend_on_the_order_of_the_file() -> None:
    texts = [f"question {i}" for i in range(50)]
    prints = [fingerprint(said(text), seed=1) for text in texts]
    _, held_out = split_off(prints, 0.1)
    _, held_out_reversed = split_off(prints[::-1], 0.1)
    assert {texts[i] for i in held_out} == {texts[::-1][i] for i in held_out_reversed}


def test_another_seed_holds_out_others() -> None:
    splits = [split_off([fingerprint(said(str(i)), seed) for i in range(100)], 0.1)[1] for seed in (1, 2)]
    assert splits[0] != splits[1]


def test_a_small_corpus_holds_out_at_least_one_and_keeps_at_least_one() -> None:
    prints = [fingerprint(said(str(i)), 1) for i in range(2)]
    assert [len(side) for side in split_off(prints, 0.01)] == [1, 1]
    assert [len(side) for side in split_off(prints, 0.99)] == [1, 1]


def test_nothing_is_held_out_if_nothing_is_asked_for() -> None:
    assert split_off([b"a", b"b"], 0.0) == ([0, 1], [])
