"""What an epoch consists of."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_sft.data.mixture import epoch_order

sizes_of_corpora = st.lists(st.integers(1, 40), min_size=1, max_size=4)
sizes_and_counts = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 100)), min_size=1, max_size=4).map(
    lambda pairs: ([size for size, _ in pairs], [count for _, count in pairs])
)
seeds = st.integers(0, 2**64)
epochs = st.integers(0, 10**6)


def order_of(sizes: list[int], counts: list[int], *, seed: int = 0, epoch: int = 0) -> list[int]:
    order: list[int] = epoch_order(sizes, counts, seed=seed, epoch=epoch).tolist()
    return order


def appearances(sizes: list[int], order: list[int]) -> list[list[int]]:
    """For each corpus, how often each of its records stands in an order."""
    times = np.bincount(np.array(order, dtype=np.int64), minlength=sum(sizes))
    return [part.tolist() for part in np.split(times, np.cumsum(sizes)[:-1])]


@given(sizes_and_counts, seeds, st.integers(1, 7))
def test_every_record_of_a_corpus_is_seen_as_often_as_any_other(
    mixture: tuple[list[int], list[int]], seed: int, num_epochs: int
) -> None:
    orders = [order_of(*mixture, seed=seed, epoch=epoch) for epoch in range(num_epochs)]
    seen = appearances(mixture[0], [record for order in orders for record in order])
    for size, count, times in zip(*mixture, seen, strict=True):
        assert sum(times) == num_epochs * count
        assert set(times) <= {num_epochs * count // size, -(-num_epochs * count // size)}


@given(sizes_and_counts, seeds, epochs)
def test_any_epoch_takes_what_was_asked_of_each_corpus(
    mixture: tuple[list[int], list[int]], seed: int, epoch: int
) -> None:
    sizes, counts = mixture
    assert [sum(times) for times in appearances(sizes, order_of(sizes, counts, seed=seed, epoch=epoch))] == counts


@given(sizes_of_corpora, seeds, epochs)
def test_whole_corpora_are_seen_exactly_once_in_an_epoch(sizes: list[int], seed: int, epoch: int) -> None:
    assert sorted(order_of(sizes, sizes, seed=seed, epoch=epoch)) == list(range(sum(sizes)))


@given(sizes_and_counts, seeds, epochs)
def test_an_epoch_is_a_function_of_seed_and_number(mixture: tuple[list[int], list[int]], seed: int, epoch: int) -> None:
    assert order_of(*mixture, seed=seed, epoch=epoch) == order_of(*mixture, seed=seed, epoch=epoch)


def test_epochs_seeds_and_passes_differ() -> None:
    sizes, counts = [50, 30], [50, 90]
    orders = [order_of(sizes, counts, seed=seed, epoch=epoch) for seed in range(3) for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == len(orders)


def test_an_epoch_goes_on_where_the_last_stopped() -> None:
    orders = [order_of([100], [40], epoch=epoch) for epoch in range(3)]
    assert not set(orders[0]) & set(orders[1])
    assert set(orders[2]) > set(range(100)) - set(orders[0]) - set(orders[1])


def test_a_part_of_a_corpus_is_drawn_from_all_of_it_and_differs_between_passes() -> None:
    first, second = ({*order_of([1000], [100], epoch=epoch)} for epoch in (0, 10))
    assert first != second
    assert min(first) < 200
    assert max(first) > 800


def test_corpora_stand_among_each_other_in_the_whole_epoch() -> None:
    order = np.array(order_of([3000, 1000], [3000, 1000]))
    shares = [(part >= 3000).mean() for part in np.split(order, 10)]
    assert min(shares) > 0.15
    assert max(shares) < 0.35


def test_corpora_take_other_places_in_each_epoch() -> None:
    places = [tuple(record >= 50 for record in order_of([50, 50], [50, 50], epoch=epoch)) for epoch in range(4)]
    assert len(set(places)) == len(places)


def test_records_are_shuffled_over_whole_corpora() -> None:
    order = np.array(order_of([4000], [4000]))
    assert abs(np.corrcoef(order, np.arange(4000))[0, 1]) < 0.05


def test_corpora_of_equal_size_are_not_shuffled_alike() -> None:
    order = np.array(order_of([60, 60], [20, 20]))
    assert {*order[order < 60]} != {*(order[order >= 60] - 60)}


def test_nothing_can_come_from_an_empty_corpus() -> None:
    assert sorted(order_of([0, 3], [0, 3])) == [0, 1, 2]
    with pytest.raises(ValueError, match="corpus 0 has no records, but an epoch is to take 2"):
        order_of([0, 3], [2, 3])
