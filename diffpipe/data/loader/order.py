"""Which sample stands at a position of the endless, shuffled stream, without any state.

Each epoch permutes the shards; their samples, put end to end, are cut into lanes; each lane is shuffled within windows.
Position p of an epoch is entry p // L of lane p % L. Neighbours in the stream thus come from L distant places of the
data set, and each lane reads a shard or two at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from diffpipe.rng import permutation


class Order:
    """The order of the stream: a pure function of (seed, counts, lanes, window), in which each epoch is a permutation.

    counts: samples of each shard. window: how many samples are shuffled among each other, over all lanes together, so
    that each lane has its share of it. Data of at most one window is one lane, shuffled uniformly. There are no more
    lanes than the root of the window, and always a power of two.
    A rank that takes every W-th position of each global batch, with W dividing both the batch and the number of lanes,
    stays in its own lanes throughout an epoch, and so reads a W-th of the shards.
    """

    def __init__(self, seed: int, counts: Sequence[int] | np.ndarray, lanes: int = 64, window: int = 16384):
        self.seed = seed
        self.counts = np.asarray(counts, dtype=np.int64)
        self.total = int(self.counts.sum())
        assert self.total > 0
        most = 1 if self.total <= window else min(lanes, math.isqrt(window))
        self.lanes = 1 << (most.bit_length() - 1)
        self._per_lane, self._longer = divmod(self.total, self.lanes)  # the first `longer` lanes have one sample more
        self._width = min(window // self.lanes, self._per_lane + 1)
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._rows: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    @property
    def at_a_time(self) -> int:
        """About how many shards the lanes together read of while the stream goes on by a window."""
        mean = self.total / len(self.counts)
        return min(len(self.counts), self.lanes * (1 + math.ceil(self._width / mean)))

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
        start = lane * self._per_lane + np.minimum(lane, self._longer)
        number, offset = np.divmod(index, self._width)
        shuffled = np.empty_like(offset)
        for row in np.unique(number):
            here = number == row
            shuffled[here] = self._row(epoch, int(row), lane[here])[lane[here], offset[here]]
        return start + number * self._width + shuffled

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's shards in order and where each ends in their concatenation."""
        if epoch not in self._epochs:
            if len(self._epochs) == 2:  # a batch may straddle two
                self._epochs.pop(min(self._epochs))
            shards = permutation(len(self.counts), self.seed, "shards", epoch)
            self._epochs[epoch] = shards, np.cumsum(self.counts[shards])
        return self._epochs[epoch]

    def _row(self, epoch: int, number: int, lanes: np.ndarray) -> np.ndarray:
        """The permutations of the lanes' windows of this number, [lanes, width]; those of `lanes` are there."""
        if (epoch, number) not in self._rows:
            if len(self._rows) == 2:
                self._rows.pop(next(iter(self._rows)))
            row = np.empty((self.lanes, self._width), dtype=np.int64)
            self._rows[epoch, number] = row, np.zeros(self.lanes, dtype=bool)
        row, known = self._rows[epoch, number]
        for lane in np.unique(lanes[~known[lanes]]):
            size = min(self._width, self._per_lane + (lane < self._longer) - number * self._width)
            row[lane, :size] = permutation(int(size), self.seed, "window", epoch, int(lane), number)
            known[lane] = True
        return row


def sequential(counts: Sequence[int] | np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shard and sample, each int64 [n], for indices int64 [n] into the shards put end to end, unshuffled."""
    counts = np.asarray(counts, dtype=np.int64)
    ends = np.cumsum(counts)
    assert indices.size == 0 or (indices.min() >= 0 and indices.max() < ends[-1])
    shard = np.searchsorted(ends, indices, side="right")
    return shard, indices - (ends[shard] - counts[shard])
