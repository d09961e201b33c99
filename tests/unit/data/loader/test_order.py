"""The order: exact permutations, a function of the position alone, within bounds on open shards."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffpipe.data.loader.order import Order, sequential

counts_of_shards = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def everything(counts: list[int]) -> set[tuple[int, int]]:
    return {(shard, i) for shard, n in enumerate(counts) for i in range(n)}


@given(counts_of_shards, st.integers(1, 70), st.integers(1, 100), st.integers(0, 2**40), st.integers(0, 10**6))
def test_each_epoch_is_an_exact_permutation(counts: list[int], lanes: int, window: int, seed: int, epoch: int) -> None:
    order = Order(seed, counts, lanes, window)
    shard, sample = order.at(np.arange(order.total) + epoch * order.total)
    samples = list(zip(shard.tolist(), sample.tolist(), strict=True))
    assert len(set(samples)) == len(samples)
    assert set(samples) == everything(counts)


@given(counts_of_shards, st.integers(1, 70), st.integers(1, 100), st.data())
def test_a_position_does_not_depend_on_earlier_calls(
    counts: list[int], lanes: int, window: int, data: st.DataObject
) -> None:
    used = Order(3, counts, lanes, window)
    asked = data.draw(st.lists(st.integers(0, 5 * used.total), min_size=1, max_size=50))
    together = np.stack(used.at(np.array(asked)))
    for column, position in zip(together.T, asked, strict=True):
        fresh = np.stack(Order(3, counts, lanes, window).at(np.array([position])))
        assert np.array_equal(fresh[:, 0], column)


@pytest.mark.parametrize(
    ("n", "lanes", "window", "expected"),
    [
        (100, 64, 16384, 1),
        (100, 64, 100, 1),
        (100, 64, 99, 8),
        (100, 7, 99, 4),
        (100, 3, 1, 1),
        (1 << 20, 64, 16384, 64),
    ],
)
def test_lanes_in_effect(n: int, lanes: int, window: int, expected: int) -> None:
    assert Order(0, [n], lanes, window).lanes == expected


def test_epochs_and_seeds_differ() -> None:
    order, other = Order(0, [50, 50]), Order(1, [50, 50])
    first, second = (np.stack(order.at(np.arange(100) + epoch * 100)) for epoch in (0, 1))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, np.stack(other.at(np.arange(100))))


def test_data_of_one_window_is_shuffled_uniformly() -> None:
    n, epochs = 10, 6000
    shard, sample = Order(7, [4, 6]).at(np.arange(n * epochs))
    sample = sample + 4 * shard
    counts = np.zeros((n, n))
    np.add.at(counts, (np.arange(n * epochs) % n, sample), 1)
    # chi-square of a doubly constrained n x n table: (n - 1)^2 = 81 degrees of freedom, standard deviation 12.7
    chi_square = ((counts - epochs / n) ** 2 / (epochs / n)).sum() * (n - 1) / n
    assert abs(chi_square - 81) < 5 * 12.7


def test_a_rank_stays_in_its_own_shards() -> None:
    lanes, world = 8, 4
    order = Order(0, [100] * 32, interleave=lanes, shuffle_window=400)
    assert order.lanes == lanes
    shard, _ = order.at(np.arange(order.total))
    owned = [set(shard[rank::world].tolist()) for rank in range(world)]
    assert all(len(own) == 32 // world for own in owned)
    assert len(set.union(*owned)) == 32


@given(counts_of_shards, st.integers(1, 16), st.integers(1, 100))
def test_no_more_shards_are_read_at_a_time_than_it_says(counts: list[int], lanes: int, window: int) -> None:
    order = Order(0, [40 for _ in counts], lanes, window)
    shard, _ = order.at(np.arange(order.total))
    span = order._lane_window * order.lanes
    assert max(len(set(shard[i : i + span].tolist())) for i in range(0, order.total, span)) <= order.concurrent_shards


def test_a_lane_reads_within_its_share_of_the_window() -> None:
    order = Order(0, [1000] * 8, interleave=4, shuffle_window=400)
    shard, _ = order.at(np.arange(order.total))
    for lane in range(4):
        for window in range(0, 2000, 100):
            assert len(set(shard[lane::4][window : window + 100].tolist())) == 1


def test_sequential_counts_through_the_shards() -> None:
    shard, sample = sequential([2, 1, 3], np.array([0, 1, 2, 3, 5]))
    assert shard.tolist() == [0, 0, 1, 2, 2]
    assert sample.tolist() == [0, 1, 0, 0, 2]


def test_a_billion_samples_cost_little_time_and_memory() -> None:
    tracemalloc.start()
    try:
        order = Order(0, np.full(100_000, 10_000))
        for step in range(4090, 4100):  # across the change of every lane's window
            order.at(np.arange(256) + step * 256)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * 2**20
    steps = 300
    start = time.process_time()
    for step in range(steps):
        order.at(np.arange(256) + (5000 + step) * 256)
    assert (time.process_time() - start) / (256 * steps) < 10e-6
