"""Ranked and judged answers in, batches of pairs out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import END, USER, LetterText
from hypothesis import given, settings
from hypothesis import strategies as st
from rankings import judged, ranked, written

from lit_sft.conversation import IGNORE_INDEX
from lit_sft.corpora.belle import Belle
from lit_sft.data import order
from lit_sft.data.batch import PairBatch
from lit_sft.data.encoder import Encoding
from lit_sft.data.order import Position
from lit_sft.data.preference import PreferenceData
from lit_sft.data.sft import SFTData
from lit_sft.errors import ConfigError

PAIRS = [ranked(f"q{i % 12:02d}", "good" + "!" * (i % 7), "bad" + "?" * (i % 5)) for i in range(40)]
MIXED = [
    *(ranked(f"q{i:02d}", *("abcdefgh"[: 2 + i % 4])) for i in range(20)),
    *(judged(f"j{i:02d}", "x" * (1 + i % 6), good=i % 3 == 0) for i in range(20)),
]


def data_of(tmp_path: Path, records: list[dict[str, Any]], **options: Any) -> PreferenceData:
    options = {"max_length": 32, "micro_batch_size": 4, "validation_fraction": 0.25, **options}
    data = PreferenceData(LetterText(), [written(tmp_path / "pairs.jsonl", records)], **options)
    data.setup("fit")
    return data


def segments(batch: PairBatch) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of each segment, in the order of the rows."""
    found = []
    for row in range(len(batch.input_ids)):
        for number in range(1, int(batch.segment_ids[row].max()) + 1):
            own = batch.segment_ids[row] == number
            found.append((batch.input_ids[row][own].tolist(), batch.labels[row][own].tolist()))
    return found


def sequences_by_source(batches: Any) -> dict[str, list[tuple[list[int], list[int]]]]:
    """What stands in the sequences of each record; every record must stand in one batch only."""
    found: dict[str, list[tuple[list[int], list[int]]]] = {}
    for batch in batches:
        assert not {*batch.sources} & {*found}
        for segment, record in zip(segments(batch), batch.sequences.tolist(), strict=True):
            found.setdefault(batch.sources[record], []).append(segment)
    return found


def rows(batches: Any) -> list[Any]:
    return [
        {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in vars(batch).items()}
        for batch in batches
    ]


def sources(batches: Any) -> list[str]:
    return [source for batch in batches for source in batch.sources]


def letters(text: str) -> list[int]:
    return [ord(char) for char in text]


def test_both_answers_stand_side_by_side_behind_the_same_prompt_with_loss_on_the_answers_alone(tmp_path: Path) -> None:
    data = data_of(tmp_path, [ranked("q", "good", "bad", margin=0.5)], validation_fraction=0.0)
    (batch,) = data.train_dataloader()
    prompt, good, bad = [USER, *letters("q")], [*letters("good"), END], [*letters("bad"), END]
    assert batch.input_ids.tolist() == [[*prompt, *good, *prompt, *bad]]
    assert batch.labels.tolist() == [[*[IGNORE_INDEX] * 2, *good, *[IGNORE_INDEX] * 2, *bad]]
    assert batch.position_ids.tolist() == [[*range(7), *range(6)]]
    assert batch.segment_ids.tolist() == [[*[1] * 7, *[2] * 6]]
    assert batch.pairs.tolist() == [[0, 1]]
    assert batch.margins.tolist() == [0.5]
    assert batch.is_good.tolist() == [True, False]
    assert (batch.num_tokens, batch.num_supervised) == (13, 9)


def test_of_a_ranking_every_pair_is_compared_the_better_answer_first(tmp_path: Path) -> None:
    data = data_of(tmp_path, [ranked("q", "a", "bb", "ccc", "dddd")], validation_fraction=0.0)
    (batch,) = data.train_dataloader()
    assert [len(ids) for ids, _ in segments(batch)] == [4, 5, 6, 7]
    assert batch.pairs.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert batch.margins.tolist() == [0.0] * 6
    assert batch.is_good.tolist() == [True, False, False, False]


def test_a_judged_answer_has_a_verdict_and_no_pair(tmp_path: Path) -> None:
    records = [judged("q", "a", good=True), judged("p", "bb", good=False)]
    (batch,) = data_of(tmp_path, records, validation_fraction=0.0, packing=False).train_dataloader()
    by_source = dict(zip(batch.sources, batch.is_good.tolist(), strict=True))
    assert by_source == {f"{tmp_path}/pairs.jsonl:1": True, f"{tmp_path}/pairs.jsonl:2": False}
    assert batch.pairs.shape == (0, 2)
    assert batch.margins.shape == (0,)


@pytest.mark.parametrize("packing", [True, False])
def test_segments_are_numbered_over_the_batch_in_the_order_of_its_rows(tmp_path: Path, packing: bool) -> None:
    data = data_of(tmp_path, MIXED, packing=packing)
    for batch in data.train_dataloader():
        found = segments(batch)
        assert len(found) == len(batch.sequences) == len(batch.is_good) == len(batch.sequence_corpora)
        assert (batch.sequences.diff() >= 0).all()
        for better, worse in batch.pairs.tolist():
            assert batch.sequences[better] == batch.sequences[worse]
            assert found[better][0] < found[worse][0]  # the answers of MIXED are in alphabetical order
        counts = np.bincount(batch.sequences)
        assert len(batch.pairs) == sum(n * (n - 1) // 2 for n in counts.tolist())


@pytest.mark.parametrize("packing", [True, False])
def test_every_record_is_seen_once_in_training_or_validation(tmp_path: Path, packing: bool) -> None:
    data = data_of(tmp_path, MIXED, packing=packing)
    seen = sources(data.train_dataloader()) + sources(data.val_dataloader())
    assert sorted(seen) == sorted(f"{tmp_path}/pairs.jsonl:{line}" for line in range(1, 41))


def test_packed_or_not_the_sequences_are_the_same(tmp_path: Path) -> None:
    packed, alone = (sequences_by_source(data_of(tmp_path, MIXED, packing=p).train_dataloader()) for p in (True, False))
    assert packed == alone
    assert max(map(len, packed.values())) == 5


record = st.one_of(
    st.builds(ranked, st.text("pq", min_size=1, max_size=9), *[st.text("ab", max_size=12)] * 2),
    st.builds(ranked, st.text("pq", min_size=1, max_size=9), *[st.text("ab", max_size=12)] * 4),
    st.builds(judged, st.text("pq", min_size=1, max_size=9), st.text("ab", max_size=12), st.booleans()),
)


@settings(max_examples=20)
@given(st.lists(record, min_size=1, max_size=30), st.booleans(), st.integers(1, 3), st.integers(1, 3))
def test_the_answers_of_a_record_are_always_in_one_row(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any], packing: bool, num_rows: int, num_ranks: int
) -> None:
    folder = tmp_path_factory.mktemp("data")
    options = {"validation_fraction": 0.0, "max_length": 24, "packing": packing, "micro_batch_size": num_rows}
    data = data_of(folder, records, **options)
    seen = []
    for rank in range(num_ranks):
        of_rank = order.EpochOrder(
            data.mixture, data.batching, data.prepared.encoder, start=Position(), num_ranks=num_ranks, rank=rank
        )
        for batch in map(data.prepared.__getitem__, of_rank):
            assert isinstance(batch, PairBatch)
            seen += batch.sources
            row_of = torch.nonzero(batch.segment_ids.diff(prepend=torch.zeros(len(batch.segment_ids), 1)) > 0)[:, 0]
            for number in range(len(batch.sources)):
                assert len(set(row_of[batch.sequences == number].tolist())) == 1
    fitting = data.prepared.corpora[0].store.num_tokens(np.arange(len(records))) > 0
    assert sorted(seen) == sorted(f"{folder}/pairs.jsonl:{line + 1}" for line in np.flatnonzero(fitting))


def test_what_does_not_fit_is_left_out_and_never_cut(tmp_path: Path) -> None:
    records = [
        ranked("q", "good", "bad"),
        ranked("q" * 15, "a", "b"),  # with USER no room is left
        ranked("p", "a", "b" * 14),
        ranked("p", "a", "b" * 13),
        judged("p", "b" * 14, good=True),
    ]
    data = data_of(tmp_path, records, max_length=16, validation_fraction=0.0, max_bad_fraction=1.0)
    assert sorted(sources(data.train_dataloader())) == [f"{tmp_path}/pairs.jsonl:{line}" for line in (1, 4)]
    assert data.quarantine.skipped == {"prompt-too-long": 1, "answer-too-long": 2}
    assert not data.quarantine.repaired


def test_a_ranking_longer_than_two_answers_may_be_loses_the_longest_between_best_and_worst(tmp_path: Path) -> None:
    data = data_of(tmp_path, [ranked("q", "a" * 9, "bb", "c" * 8, "d" * 7)], max_length=16, validation_fraction=0.0)
    (batch,) = data.train_dataloader()
    assert ["".join(map(chr, ids[2:-1])) for ids, _ in segments(batch)] == ["a" * 9, "bb", "d" * 7]
    assert data.quarantine.repaired == {"answers-dropped": 1}
    assert not data.quarantine.skipped


def test_records_of_one_prompt_are_held_out_together(tmp_path: Path) -> None:
    data = data_of(tmp_path, PAIRS)

    def prompts(loader: Any) -> set[int]:
        return {int(source.rsplit(":")[-1]) % 12 for source in sources(loader)}

    assert len(prompts(data.val_dataloader())) == 3
    assert not prompts(data.val_dataloader()) & prompts(data.train_dataloader())


def test_only_what_says_all_the_same_is_a_duplicate(tmp_path: Path) -> None:
    records = [ranked("q", "a", "b"), ranked("q", "b", "a"), ranked("q", "a", "b"), judged("q", "a", True)]
    records += [judged("q", "a", False), judged("q", "a", True)]
    data = data_of(tmp_path, records, validation_fraction=0.0, deduplicate=True)
    assert sorted(sources(data.train_dataloader())) == [f"{tmp_path}/pairs.jsonl:{n}" for n in (1, 2, 4, 5)]


def test_every_held_out_prompt_is_asked_once_with_its_good_answer(tmp_path: Path) -> None:
    records = [*(ranked(f"q{i % 4}", f"good{i}", "bad") for i in range(12)), judged("j", "bad", False)]
    test = written(tmp_path / "test.jsonl", records)
    data = data_of(tmp_path, PAIRS, test_corpora=[test])
    asked = [(prompt.text, prompt.reference) for prompt in data.held_out_prompts()]
    assert asked == [("q0", "good0"), ("q1", "good1"), ("q2", "good2"), ("q3", "good3"), ("j", None)]


@pytest.mark.parametrize("packing", [True, False])
def test_batches_are_the_same_cold_or_warm_and_with_any_number_of_workers(tmp_path: Path, packing: bool) -> None:
    options: dict[str, Any] = {"packing": packing, "validation_fraction": 0.0}
    cold = [
        rows(data_of(tmp_path, MIXED, num_workers=n, cache=str(tmp_path / f"{n}"), **options).train_dataloader())
        for n in (0, 2)
    ]
    warm = rows(data_of(tmp_path, MIXED, cache=str(tmp_path / "0"), **options).train_dataloader())
    assert cold[0] == cold[1] == warm


def test_what_the_second_run_needs_is_not_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rows(data_of(tmp_path, MIXED).train_dataloader())
    monkeypatch.setattr(Encoding, "encode", None)
    assert rows(data_of(tmp_path, MIXED).train_dataloader()) == first


def test_a_resumed_run_goes_on_with_the_batch_it_would_have_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "WINDOW", 10)
    options: dict[str, Any] = {"validation_fraction": 0.0, "packing": True, "micro_batch_size": 1}
    whole = data_of(tmp_path, MIXED, **options)
    expected = rows(whole.train_dataloader())
    for done in range(1, len(expected)):
        resumed = data_of(tmp_path, MIXED, **options)
        position = whole.order.position_after(0, done)
        resumed.load_state_dict({**vars(position), "data": whole.identity()})
        assert rows(resumed.train_dataloader()) == expected[done:]


def test_two_ranks_share_the_rows_of_a_step_out(tmp_path: Path) -> None:
    def seen(num_ranks: int, **options: Any) -> list[list[str]]:
        data = data_of(tmp_path, MIXED, validation_fraction=0.0, packing=True, **options)
        found = []
        orders = [
            order.EpochOrder(
                data.mixture, data.batching, data.prepared.encoder, start=Position(), num_ranks=num_ranks, rank=rank
            )
            for rank in range(num_ranks)
        ]
        for step in zip(*orders, strict=True):
            found.append(sorted(source for batch in step for source in data.prepared[batch].sources))
        return found

    assert seen(1, micro_batch_size=4) == seen(2, micro_batch_size=2)


def test_conversations_are_refused_with_the_data_module_for_them(tmp_path: Path, corpus_file: Path) -> None:
    with pytest.raises(ConfigError, match="Belle reads conversations.*set data.class_path to SFTData"):
        PreferenceData(LetterText(), [Belle(str(corpus_file))], max_length=32)


def test_tuning_on_the_best_answers_takes_the_same_corpora(tmp_path: Path) -> None:
    corpus = written(tmp_path / "pairs.jsonl", [ranked("q", "good", "bad"), judged("p", "fine", True)])
    data = SFTData(LetterText(), [corpus], max_length=32, validation_fraction=0.0)
    data.setup("fit")
    texts = ["".join(map(chr, row)) for batch in data.train_dataloader() for row in batch.input_ids.tolist()]
    assert sorted(text.strip("\0") for text in texts) == sorted(["\2qgood\1", "\2pfine\1"])


def test_what_was_forgotten_is_measured_on_conversations_or_on_the_best_answers(tmp_path: Path) -> None:
    belle = tmp_path / "belle.json"
    belle.write_text('{"instruction": "x", "output": "y"}\n')
    data = data_of(tmp_path, PAIRS, forgetting=[Belle(str(belle))])
    (batch,) = data.forgetting_dataloader()
    assert not isinstance(batch, PairBatch)
    assert batch.input_ids.tolist() == [[USER, ord("x"), ord("y"), END]]
    best = [row for batch in data_of(tmp_path, PAIRS).forgetting_dataloader() for row in batch.input_ids.tolist()]
    assert best
    assert all("good" in "".join(map(chr, row)) for row in best)


def test_test_records_whose_prompt_is_trained_on_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    test = written(tmp_path / "test.jsonl", [ranked("q00", "other", "answers"), ranked("new", "a", "b")])
    data_of(tmp_path, PAIRS, validation_fraction=0.0, test_corpora=[test])
    assert "1 of 2 records of data.test_corpora are also trained on" in caplog.text


def notes_of(tmp_path: Path, records: list[dict[str, Any]]) -> list[str]:
    return data_of(tmp_path, records, validation_fraction=0.0).notes()


def test_how_often_the_longer_answer_wins_is_said_before_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [ranked(f"q{i}", *(("long", "s") if i < 7 else ("s", "long"))) for i in range(9)]
    records += [ranked("equal", "a", "b"), judged("j", "good", True), judged("k", "ba", False)]
    with caplog.at_level("INFO"):
        notes = notes_of(tmp_path, records)
    assert notes == [
        "Rankings: 10 pairs, the longer answer is the better one in 70% and the shorter one in 20%; 3 characters on "
        "average against 2. Length alone predicts much of this: see that it is not all that is learned",
        "Rankings: 2 judged answers, 50% of them good; good ones have 4 characters on average, bad ones 2",
    ]
    assert all(note in caplog.text for note in notes)


def test_pairs_in_both_orders_and_answers_judged_both_ways_are_named(tmp_path: Path) -> None:
    records = [ranked("q", "a", "b", "c"), ranked("q", "c", "b"), ranked("p", "c", "b"), ranked("q", "a", "b")]
    *_, note = notes_of(tmp_path, records)
    file = tmp_path / "pairs.jsonl"
    assert note == f"1 contradiction: {file}:1 judges answers one way and {file}:2 the other way"
    records = [judged("q", "a", True), judged("q", "a", False), judged("q", "b", False), judged("p", "a", False)]
    *_, note = notes_of(tmp_path, records)
    assert note == f"1 contradiction: {file}:1 judges answers one way and {file}:2 the other way"
    assert len(notes_of(tmp_path, records[1:])) == 1
