"""Which sample stands at a position of the endless, shuffled stream, without any state.

Each epoch permutes the shards; their samples, put end to end, are cut into lanes; each lane is shuffled within windows.
Position p of an epoch is entry p // L of lane p % L. Neighbours in the stream thus come from L distant places of the
data set and from windows that span many shards, yet each lane reads a few shards at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffpipe import rng


class Order:
    """The order of the stream: a pure function of (seed, counts, lanes, window), in which each epoch is a permutation.

    counts: samples of each shard. Where the data is too small to fill `lanes` lanes with a window each, it has fewer,
    down to one: data of less than two windows makes one lane, and of at most one window is shuffled uniformly.
    A rank that takes every W-th position of each global batch, with W dividing both the batch and the number of lanes,
    stays in its own lanes throughout an epoch, and so reads a W-th of the shards.
    """

    def __init__(self, seed: int, counts: Sequence[int] | np.ndarray, lanes: int = 64, window: int = 16384):
        self.seed = seed
        self.counts = np.asarray(counts, dtype=np.int64)
        self.total = int(self.counts.sum())
        assert self.total > 0
        self.window = window
        self.lanes = 1 << (min(lanes, max(1, self.total // window)).bit_length() - 1)
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._windows: dict[tuple[int, int, int], np.ndarray] = {}

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard and sample within the shard, each int64 [b], for positions int64 [b] ≥ 0."""
        shard, sample = np.empty_like(positions), np.empty_like(positions)
        epochs, within = np.divmod(positions, self.total)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            shards, ends = self._epoch(int(epoch))
            virtual = self._virtual(int(epoch), within[here])
            slot = np.searchsorted(ends, virtual, side="right")
            shard[here] = shards[slot]
            sample[here] = virtual - (ends[slot] - self.counts[shards[slot]])
        return shard, sample

    def _virtual(self, epoch: int, within: np.ndarray) -> np.ndarray:
        """Indices into the epoch's concatenated shards for positions within the epoch."""
        index, lane = np.divmod(within, self.lanes)
        per_lane, longer = divmod(self.total, self.lanes)  # the first `longer` lanes have one sample more
        start = lane * per_lane + np.minimum(lane, longer)
        number, offset = np.divmod(index, self.window)
        shuffled = np.empty_like(offset)
        groups, group = np.unique(number * self.lanes + lane, return_inverse=True)
        for g, name in enumerate(groups):
            here = group == g
            w, n = divmod(int(name), self.lanes)
            size = min(self.window, per_lane + (n < longer) - w * self.window)
            shuffled[here] = self._window(epoch, n, w, size)[offset[here]]
        return start + number * self.window + shuffled

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's shards in order and where each ends in their concatenation."""
        if epoch not in self._epochs:
            if len(self._epochs) == 2:  # a batch may straddle two
                self._epochs.pop(min(self._epochs))
            shards = rng.permutation(len(self.counts), self.seed, "shards", epoch)
            self._epochs[epoch] = shards, np.cumsum(self.counts[shards])
        return self._epochs[epoch]

    def _window(self, epoch: int, lane: int, number: int, size: int) -> np.ndarray:
        """The permutation of one window. The cache holds two windows a lane and drops the oldest."""
        name = epoch, lane, number
        if name not in self._windows:
            if len(self._windows) == 2 * self.lanes:
                self._windows.pop(next(iter(self._windows)))
            self._windows[name] = rng.permutation(size, self.seed, "window", epoch, lane, number)
        return self._windows[name]


def sequential(counts: Sequence[int] | np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shard and sample, each int64 [n], for indices int64 [n] into the shards put end to end, unshuffled."""
    counts = np.asarray(counts, dtype=np.int64)
    ends = np.cumsum(counts)
    assert indices.size == 0 or (indices.min() >= 0 and indices.max() < ends[-1])
    shard = np.searchsorted(ends, indices, side="right")
    return shard, indices - (ends[shard] - counts[shard])
