"""The order of training: every record once an epoch, whoever trains, and from any position the batches that follow."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_sft.data import order
from lit_sft.data.order import Batching, EpochOrder, HeldOutOrder, MicroBatch, Mixture, Position

ROW = 32


class KnownLengths:
    """In place of an encoder: all is encoded, record i of corpus c has the length that a hash gives it."""

    def begin(self, selection: Any) -> None:
        pass

    def need(self, selection: Any, what: str = "") -> None:
        pass

    def await_begun(self, selection: Any) -> None:
        pass

    def num_tokens(self, selection: Any) -> Any:
        corpus_of, records = (part.astype(np.int64) for part in selection)
        return (corpus_of * 31 + records * 17) % (ROW + 1)  # 0: left out


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "WINDOW", 40)


def mixture(sizes: list[int], counts: list[int] | None = None) -> Mixture:
    corpus_of = np.repeat(np.arange(len(sizes), dtype=np.uint8), sizes)
    records = np.concatenate([np.arange(size, dtype=np.uint32) for size in sizes])
    return Mixture((corpus_of, records), sizes, counts or sizes, seed=5)


def epoch_order(mix: Mixture, *, packing: bool, ranks: int = 1, rank: int = 0, rows: int = 2, **start: int) -> Any:
    made: Any = EpochOrder(
        mix,
        Batching(ROW, rows, packing),
        KnownLengths(),  # type: ignore[arg-type]
        start=Position(**start),
        num_ranks=ranks,
        rank=rank,
    )
    return made


def examples(batches: list[MicroBatch]) -> list[tuple[int, int]]:
    return [example for batch in batches for row in batch.rows for example in row]


def length_of(example: tuple[int, int]) -> int:
    return int((example[0] * 31 + example[1] * 17) % (ROW + 1))


sizes_of_corpora = st.lists(st.integers(1, 90), min_size=1, max_size=3)


@given(sizes_of_corpora, st.booleans(), st.integers(1, 5), st.integers(0, 3))
def test_every_example_is_seen_once_an_epoch_by_any_number_of_ranks(
    sizes: list[int], packing: bool, ranks: int, epoch: int
) -> None:
    shares = [[*epoch_order(mixture(sizes), packing=packing, ranks=ranks, rank=r, epoch=epoch)] for r in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    seen = [example for share in shares for example in examples(share)]
    usable = [(c, i) for c, size in enumerate(sizes) for i in range(size) if length_of((c, i))]
    assert sorted(seen) == usable


@given(sizes_of_corpora, st.booleans(), st.integers(1, 4))
def test_a_micro_batch_holds_no_more_than_its_tokens(sizes: list[int], packing: bool, rows: int) -> None:
    for batch in epoch_order(mixture(sizes), packing=packing, rows=rows):
        lengths = [sum(map(length_of, row)) for row in batch.rows]
        assert len(lengths) * max(lengths) <= rows * ROW


@given(sizes_of_corpora, st.booleans(), st.integers(1, 3), st.integers(0, 2), st.data())
def test_from_any_position_follows_what_would_have_followed(
    sizes: list[int], packing: bool, ranks: int, epoch: int, data: Any
) -> None:
    """Stopped twice, at any batch, on any rank."""
    rank = data.draw(st.integers(0, ranks - 1))
    whole = epoch_order(mixture(sizes), packing=packing, ranks=ranks, rank=rank, epoch=epoch)
    batches = [*whole]
    position, seen = Position(epoch), []
    for _ in range(2):
        stop = data.draw(st.integers(position.num_batches, len(batches)))
        part = epoch_order(mixture(sizes), packing=packing, ranks=ranks, rank=rank, **vars(position))
        seen += [*part][: stop - position.num_batches]
        position = part.position_after(epoch, stop)
    rest = epoch_order(mixture(sizes), packing=packing, ranks=ranks, rank=rank, **vars(position))
    assert [*seen, *rest] == batches


def test_a_resumed_run_starts_the_next_epoch_at_its_beginning() -> None:
    first = epoch_order(mixture([90]), packing=True)
    assert len([*first]) > 3
    resumed = epoch_order(mixture([90]), packing=True, **vars(first.position_after(0, 3)))
    assert [*resumed]
    resumed.set_epoch(1)
    first.set_epoch(1)
    assert [*resumed] == [*first]


def test_a_step_has_the_same_rows_however_it_is_shared_out() -> None:
    """Eight rows at once, two by two over four steps of accumulation, or by four ranks, across windows."""

    def steps(ranks: int, rows: int, accumulation: int) -> list[list[Any]]:
        shares = [[*epoch_order(mixture([300]), packing=True, ranks=ranks, rank=r, rows=rows)] for r in range(ranks)]
        batches = [rows for together in zip(*shares, strict=True) for batch in together for rows in batch.rows]
        size = ranks * rows * accumulation
        return [batches[start : start + size] for start in range(0, len(batches), size)]

    assert steps(1, 8, 1) == steps(1, 2, 4) == steps(4, 2, 1) == steps(2, 1, 4)


@given(sizes_of_corpora, st.booleans(), st.integers(1, 3))
def test_the_share_of_the_epoch_rises_to_one(sizes: list[int], packing: bool, ranks: int) -> None:
    shares = [batch.epoch_progress for batch in epoch_order(mixture(sizes), packing=packing, ranks=ranks)]
    assert shares == sorted(set(shares))
    assert shares[-1:] in ([], [1.0])


def test_an_epoch_of_a_corpus_that_counts_double_sees_it_twice() -> None:
    seen = examples([*epoch_order(mixture([50, 30], [100, 10]), packing=True)])
    usable = [(0, i) for i in range(50) if length_of((0, i))]
    assert sorted(example for example in seen if example[0] == 0) == sorted(usable * 2)
    assert len({example for example in seen if example[0] == 1}) <= 10


def test_a_position_takes_no_longer_to_find_behind_many_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows before the position are not cut again."""
    calls: list[dict[str, Any]] = []
    cut = Batching.cut

    def counted(self: Batching, lengths: Any, **key: Any) -> Any:
        calls.append(key)
        return cut(self, lengths, **key)

    monkeypatch.setattr(Batching, "cut", counted)
    resumed = epoch_order(mixture([4000]), packing=True, epoch=0, num_batches=700, window=90, offset=3)
    next(iter(resumed))
    assert [key["window"] for key in calls] == [90]


@given(sizes_of_corpora, st.integers(1, 4))
def test_held_out_records_are_measured_once(sizes: list[int], ranks: int) -> None:
    records = mixture(sizes).records
    batching = Batching(ROW, 3, packing=True)
    encoder: Any = KnownLengths()
    shares = [[*HeldOutOrder(records, batching, encoder, num_ranks=ranks, rank=r)] for r in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    seen = [example for share in shares for example in examples(share)]
    assert sorted(seen) == [(c, i) for c, size in enumerate(sizes) for i in range(size) if length_of((c, i))]
    assert all(
        len(batch.rows) * max(map(length_of, examples([batch]))) <= 3 * ROW for s in shares for batch in s if batch.rows
    )
