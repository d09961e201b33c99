"""The order: exact permutations, a function of the position alone, within bounds on open shards."""

from __future__ import annotations

import time
import tracemalloc
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffpipe.data.loader.order import Order, sequential
from eval.speed.epochs import overlaps

versions = st.sampled_from([1, 2])
counts_of_shards = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def everything(counts: list[int]) -> set[tuple[int, int]]:
    return {(shard, i) for shard, n in enumerate(counts) for i in range(n)}


@given(
    counts_of_shards, st.integers(1, 70), st.integers(1, 100), st.integers(0, 2**40), st.integers(0, 10**6), versions
)
def test_each_epoch_is_an_exact_permutation(
    counts: list[int], lanes: int, window: int, seed: int, epoch: int, version: int
) -> None:
    order = Order(seed, counts, lanes, window, version)
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


FEW_SHARDS = [
    ([50_000], 16384),  # lanes of 3 windows and a rest
    ([50_000], 1024),  # lanes of 48 windows, in groups of 32
    ([6250] * 8, 16384),
    ([781] * 64, 4096),
    ([312] * 64, 16384),  # lanes of one window and a rest
    ([390] * 128, 16384),  # two shards a lane
]


@pytest.mark.parametrize(("counts", "window"), FEW_SHARDS)
def test_an_epoch_begins_with_no_more_of_the_samples_of_another_than_by_chance(counts: list[int], window: int) -> None:
    """Of few shards, too, whose own permutation changes little. Version 1 began every epoch with the same samples."""
    by_version = [np.mean(overlaps(Order(0, counts, 64, window, version), 1 / 3, 10)) for version in (1, 2)]
    assert by_version[0] > 0.4
    assert by_version[1] == pytest.approx(1 / 3, abs=0.02)


def test_each_sample_is_as_often_in_each_part_of_an_epoch() -> None:
    total, parts, epochs = 600, 5, 500
    _, sample = Order(3, [total], interleave=4, shuffle_window=128).at(np.arange(total * epochs))
    counts = np.zeros((total, parts))
    np.add.at(counts, (sample, np.arange(total * epochs) % total * parts // total), 1)
    # Each count is binomial with a standard deviation of 9. The largest of 3000 normals is near 3.5 of them.
    assert np.abs(counts - epochs / parts).max() < 5.5 * (epochs / parts * (1 - 1 / parts)) ** 0.5


def test_a_lane_of_few_shards_begins_anywhere_and_permutes_its_windows() -> None:
    order = Order(0, [400], interleave=4, shuffle_window=40)  # lanes of ten windows of ten
    starts, jumps = set(), set()
    for epoch in range(200):
        _, sample = order.at(np.arange(400) + epoch * 400)
        windows = [sample[lane::4].reshape(10, 10) for lane in range(4)]
        for lane, entries in enumerate(windows):
            rings = [set(window.tolist()) for window in entries - 100 * lane]
            first = [next(s for s in window if (s - 1) % 100 not in window) for window in rings]
            starts.add(first[0])
            jumps.update((np.diff(first) % 100).tolist())
    assert len(starts) > 95
    assert jumps == {*range(10, 100, 10)}


def test_the_order_of_earlier_checkpoints_is_kept() -> None:
    """The samples that the order gave before it had versions."""
    for counts, lanes, window, samples, digest in [
        ([50], 4, 16, [1, 13, 29, 39, 3, 14, 28, 41], "cf029de2e3e954a6"),
        ([7, 40, 13], 64, 20, [1, 2012, 1013, 1026, 4, 2008, 1012, 1028], "53dc1edd0a9b1b89"),
        ([100] * 32, 8, 400, [27042, 43, 17025, 28039, 31049, 11029, 26020, 1031], "629a7416c15599d7"),
    ]:
        shard, sample = Order(7, counts, lanes, window, version=1).at(np.arange(3 * sum(counts)))
        entries = 1000 * shard + sample
        assert entries[:8].tolist() == samples
        assert sha256(entries.astype("<i8").tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize(("counts", "window"), [([500], 500), ([100] * 40, 400)])
def test_data_of_one_window_or_of_many_shards_have_the_same_order_in_both_versions(
    counts: list[int], window: int
) -> None:
    positions = np.arange(3 * sum(counts))
    first, second = (np.stack(Order(5, counts, 8, window, version).at(positions)) for version in (1, 2))
    assert np.array_equal(first, second)


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


@pytest.mark.parametrize(("shards", "in_a_window"), [(16, 1), (8, 2)])  # lanes of two shards begin anywhere in one
def test_a_lane_reads_within_its_share_of_the_window(shards: int, in_a_window: int) -> None:
    order = Order(0, [1000] * shards, interleave=4, shuffle_window=400)
    shard, _ = order.at(np.arange(order.total))
    for lane in range(4):
        for window in range(0, order.total // 4, 100):
            assert len(set(shard[lane::4][window : window + 100].tolist())) <= in_a_window


def test_sequential_counts_through_the_shards() -> None:
    shard, sample = sequential([2, 1, 3], np.array([0, 1, 2, 3, 5]))
    assert shard.tolist() == [0, 0, 1, 2, 2]
    assert sample.tolist() == [0, 1, 0, 0, 2]


@pytest.mark.parametrize("shards", [1, 100_000])
def test_a_billion_samples_cost_little_time_and_memory(shards: int) -> None:
    tracemalloc.start()
    try:
        order = Order(0, np.full(shards, 10**9 // shards))
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
