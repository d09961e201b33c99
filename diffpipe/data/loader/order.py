"""The order of the endless, shuffled stream of samples: a pure function of the position, without any state.

Each epoch permutes the shards. Their samples, put end to end, are cut into L lanes of equal length, and each lane is
shuffled within windows. Position p of an epoch is entry p // L of lane p % L. So neighbours in the stream come from L
distant places of the data set, while each lane reads only a shard or two at a time.

Few shards make permuting them too little: with one shard, every epoch would begin with the same samples. So a lane of
two shards or less also begins at another place in each epoch, and permutes its windows. It reads both shards at a time
anyway. A longer lane keeps to the order of its shards: to jump among them would fetch remote ones twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from diffpipe.rng import fold_in, permutation

VERSION = 2
"""The version of a new run's order. In version 1 lanes began at their first sample, and windows were not permuted."""


class Order:
    """The sample at each position of the stream, for a seed and the number of samples in each shard.

    interleave: the largest number of lanes. shuffle_window: how many samples are shuffled among each other, over all
    lanes together; each lane shuffles its share. The number of lanes is a power of two, at most the square root of the
    window. Data that fits into one window is a single lane, shuffled uniformly.

    A rank that takes every W-th position of each global batch reads a W-th of the shards, if W divides both the batch
    and the number of lanes: it then stays in the same lanes throughout an epoch.
    """

    def __init__(
        self,
        seed: int,
        counts: Sequence[int] | np.ndarray,
        interleave: int = 64,
        shuffle_window: int = 16384,
        version: int = VERSION,
    ):
        self.seed = seed
        self.counts = np.asarray(counts, dtype=np.int64)
        self.total = int(self.counts.sum())
        assert self.total > 0
        most = 1 if self.total <= shuffle_window else min(interleave, math.isqrt(shuffle_window))
        self.lanes = 1 << (most.bit_length() - 1)
        self._lane_length, self._longer_lanes = divmod(self.total, self.lanes)  # the first lanes have one sample more
        self._lane_window = min(shuffle_window // self.lanes, self._lane_length + 1)
        few_shards = len(self.counts) <= 2 * self.lanes
        self._permutes_windows = version > 1 and few_shards and self._lane_window < self._lane_length
        self._shard_orders: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._windows: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    @property
    def concurrent_shards(self) -> int:
        """About how many shards all lanes together read from while the stream advances by one window."""
        mean = self.total / len(self.counts)
        return min(len(self.counts), self.lanes * (1 + math.ceil(self._lane_window / mean)))

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard and sample within the shard, each int64 [b], at positions int64 [b] ≥ 0."""
        shard, sample = np.empty_like(positions), np.empty_like(positions)
        epochs, within = np.divmod(positions, self.total)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            shards, ends = self._shard_order(int(epoch))
            index = self._shuffled(int(epoch), within[rows])
            slot = np.searchsorted(ends, index, side="right")
            shard[rows] = shards[slot]
            sample[rows] = index - (ends[slot] - self.counts[shards[slot]])
        return shard, sample

    def _shuffled(self, epoch: int, within: np.ndarray) -> np.ndarray:
        """Indices into the shards of an epoch, put end to end, for positions within the epoch."""
        entry, lane = np.divmod(within, self.lanes)
        lane_start = lane * self._lane_length + np.minimum(lane, self._longer_lanes)
        window, offset = np.divmod(entry, self._lane_window)
        shuffled = np.empty_like(offset)
        for number in np.unique(window):
            rows = window == number
            shuffled[rows] = self._window(epoch, int(number), lane[rows])[lane[rows], offset[rows]]
        return lane_start + shuffled

    def _shard_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards of an epoch in order, and the index at which each ends when they are put end to end."""
        if epoch not in self._shard_orders:
            if len(self._shard_orders) == 2:  # a batch may straddle two epochs
                self._shard_orders.pop(min(self._shard_orders))
            shards = permutation(len(self.counts), self.seed, "shards", epoch)
            self._shard_orders[epoch] = shards, np.cumsum(self.counts[shards])
        return self._shard_orders[epoch]

    def _window(self, epoch: int, number: int, lanes: np.ndarray) -> np.ndarray:
        """The samples in window `number` of each lane, counted from the lane's first sample, [lanes, window].

        Only the rows in `lanes` are filled in.
        """
        if (epoch, number) not in self._windows:
            if len(self._windows) == 2:  # a batch may straddle two windows
                self._windows.pop(next(iter(self._windows)))
            shuffled = np.empty((self.lanes, self._lane_window), dtype=np.int64)
            self._windows[epoch, number] = shuffled, np.zeros(self.lanes, dtype=bool)
        shuffled, filled = self._windows[epoch, number]
        for lane in map(int, np.unique(lanes[~filled[lanes]])):
            length = self._lane_length + (lane < self._longer_lanes)
            size = min(self._lane_window, length - number * self._lane_window)
            order = permutation(size, self.seed, "window", epoch, lane, number)
            shuffled[lane, :size] = (self._window_start(epoch, lane, number, length) + order) % length
            filled[lane] = True
        return shuffled

    def _window_start(self, epoch: int, lane: int, number: int, length: int) -> int:
        """The first sample of the `number`-th window that a lane reads in an epoch. The lane is a ring.

        The whole windows are permuted in groups of as many as a window has samples, so a window costs at most twice its
        own shuffle. The rest of the lane, less than a window, comes last.
        """
        if not self._permutes_windows:
            return number * self._lane_window
        whole = length // self._lane_window
        if number < whole:
            group, nth = divmod(number, self._lane_window)
            first = group * self._lane_window
            size = min(self._lane_window, whole - first)
            number = first + int(permutation(size, self.seed, "windows", epoch, lane, group)[nth])
        return number * self._lane_window + fold_in(self.seed, "rotation", epoch, lane) % length


def rank_positions(batch_size: int, start: int, rank: int, world: int, accumulate: int) -> Iterator[range]:
    """The positions of each micro-batch of a rank, without end, `accumulate` micro-batches to a step.

    Global batch k is the k-th `batch_size` positions from `start`. A rank takes every `world`-th of them, beginning at
    its own number, and micro-batch m every `accumulate`-th of those, beginning at the m-th.
    """
    while True:
        for micro_batch in range(accumulate):
            yield range(start + rank + world * micro_batch, start + batch_size, world * accumulate)
        start += batch_size


def sequential(counts: Sequence[int] | np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shard and sample, each int64 [n], for indices int64 [n] into the shards put end to end, unshuffled."""
    counts = np.asarray(counts, dtype=np.int64)
    ends = np.cumsum(counts)
    assert indices.size == 0 or (indices.min() >= 0 and indices.max() < ends[-1])
    shard = np.searchsorted(ends, indices, side="right")
    return shard, indices - (ends[shard] - counts[shard])
