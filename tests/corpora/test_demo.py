"""The demo corpora: one in each format, clean, and without the questions that are held out."""

from importlib import resources

from reading import read, said

from lit_sft.corpora.belle import Belle
from lit_sft.corpora.firefly import Firefly
from lit_sft.corpora.moss_sft import MossSft
from lit_sft.corpora.safety_prompts import SafetyPrompts
from lit_sft.preferences.alpaca_pairs import AlpacaPairs

DEMO = str(resources.files("lit_sft.demo"))


def test_every_demo_corpus_is_read_whole_and_gives_nothing_away() -> None:
    heldout = {said(conversation)[0] for conversation in read(Belle(f"{DEMO}/belle_heldout.json"))[0]}
    corpora = {
        Belle(f"{DEMO}/belle_train.json"): 421,
        Firefly(f"{DEMO}/firefly_train.jsonl"): 40,
        MossSft(f"{DEMO}/moss_train.jsonl"): 32,
        SafetyPrompts(f"{DEMO}/safety_train.json"): 36,
    }
    for corpus, count in corpora.items():
        conversations, findings = read(corpus)
        assert (len(conversations), findings) == (count, [])
        asked = {message for conversation in conversations for message in said(conversation) if message[0] == "user"}
        assert not asked & heldout


def test_the_demo_of_moss_has_talks_with_and_without_tools() -> None:
    conversations, _ = read(MossSft(f"{DEMO}/moss_train.jsonl"))
    with_tools = [talk for talk in conversations if any(role == "tool" for role, _ in said(talk))]
    assert len(with_tools) == 12
    assert all(sum(role == "user" for role, _ in said(talk)) == 2 for talk in conversations)


def test_the_demo_pairs_are_clean_and_hold_out_other_prompts_also_those_of_belle() -> None:
    (train, train_findings), (heldout, heldout_findings) = (
        read(AlpacaPairs(f"{DEMO}/preference_{part}.jsonl")) for part in ("train", "heldout")
    )
    assert (len(train), len(heldout), train_findings, heldout_findings) == (200, 40, [], [])
    asked = [{pair.prompt[-1].content for pair in pairs} for pairs in (train, heldout)]
    assert [len(questions) for questions in asked] == [200, 40]
    assert not asked[0] & asked[1]
    belle = {said(talk)[0][1] for talk in read(Belle(f"{DEMO}/belle_heldout.json"))[0]}
    assert not asked[0] & belle


def test_in_half_of_the_demo_pairs_the_longer_answer_is_the_better_one() -> None:
    for part in ("train", "heldout"):
        pairs, _ = read(AlpacaPairs(f"{DEMO}/preference_{part}.jsonl"))
        lengths = [[len(answer.content) for answer in pair.answers] for pair in pairs]
        longer_wins = sum(chosen > rejected for chosen, rejected in lengths) / len(pairs)
        assert 0.47 < longer_wins < 0.53
