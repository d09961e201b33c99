"""Several sets of shards in one stream, each with its weight: which source, and which of its own positions, comes when.

The stream is dealt out in blocks of N rows of C columns, position p being in column p % C. In each column of a block
every source has its share of the N entries, in an order that is drawn for that column and block. So its share of every
block is exact; source s comes to each position of its own stream once, and is an exact permutation in each epoch of its
own; and p and the source's own position agree modulo C, so that a rank that stays in its lanes does so in each source.
A source has its share of the lanes, so that several together read of no more shards at a time than one would alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from diffpipe.data.config import SourceConfig
from diffpipe.data.index import shard_set
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.loader.order import Order
from diffpipe.data.remote.cache import Cache
from diffpipe.errors import UserError
from diffpipe.rng import fold_in, philox

_FINEST = 4096
_ROWS = 64


class Mixed(ShardSet):
    """The shards of all sources, one source after the other. shares: how often each comes, in whole numbers."""

    def __init__(self, sets: Sequence[ShardSet], weights: Sequence[float]):
        super().__init__([shard for each in sets for shard in each.shards])
        self.sets = tuple(sets)
        self.shares = shares(weights)
        if len(set(self.paths)) < len(self.paths):
            raise UserError("data.sources: a shard is in two of them; name it once, or change the weights")
        most = max(shard.classes or 0 for shard in self.shards)
        if self.classes is not None and most > len(self.classes):
            raise UserError(
                f"data.sources: a label is {most - 1}, but the index of another source names {len(self.classes)} "
                f"classes; label the sources alike"
            )

    @property
    def listing(self) -> str:
        """The sources' shares, and the listing of each."""
        both = zip(self.shares, self.sets, strict=True)
        return json.dumps({"sources": [{"weight": str(w), "shards": json.loads(each.listing)} for w, each in both]})


def load_sources(
    train: str | Sequence[str] | None, sources: Sequence[SourceConfig], cache: Cache | None = None
) -> ShardSet:
    """What `data.train` names, or all of `data.sources`. Raises UserError, also where they do not go together."""
    if train is not None:
        return shard_set.load(train, cache=cache)
    sets = [shard_set.load(source.url, cache=cache) for source in sources]
    return sets[0] if len(sets) == 1 else Mixed(sets, [source.weight for source in sources])


def order_of(shard_set: ShardSet, seed: int, lanes: int, window: int) -> Order | Mixture:
    """The order in which the shards are trained on."""
    if isinstance(shard_set, Mixed):
        return Mixture(seed, [each.counts for each in shard_set.sets], shard_set.shares, lanes, window)
    return Order(seed, shard_set.counts, lanes, window)


def short_of_room(shard_set: ShardSet, order: Order | Mixture, room: int, share: float = 1.0) -> str | None:
    """What is to be said where a cache of `room` bytes does not hold the remote shards that are read of at a time.

    share: of all ranks, how many have this cache.
    """
    remote = [shard.bytes for shard in shard_set.shards if shard.remote is not None]
    at_a_time = math.ceil(order.at_a_time * share)
    needed = at_a_time * sum(remote) // max(1, len(remote))
    if needed <= room or sum(remote) <= room:
        return None
    return (
        f"data.cache_bytes is {room:,}, and the {at_a_time} shards that are read of at a time have {needed:,}: they "
        f"would be fetched again and again; raise it, or start with fewer data.interleave"
    )


def shares(weights: Sequence[float]) -> list[int]:
    """The weights as the smallest whole numbers in their proportion; to a 4096th of all, where those would be greater.

    Raises UserError for a weight that is less than that.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    common = math.lcm(*(each.denominator for each in exact))
    whole = [int(each * common) for each in exact]
    divisor = math.gcd(*whole)
    if sum(whole) // divisor <= _FINEST:
        return [each // divisor for each in whole]
    parts = [each * _FINEST / sum(whole) for each in whole]
    if min(parts) < 1:
        raise UserError(
            f"data.sources: a weight of {weights[parts.index(min(parts))]:g} is less than 1/{_FINEST} of all; "
            f"give it more, or leave the source out"
        )
    found = [int(part) for part in parts]
    rest = sorted(range(len(parts)), key=lambda s: found[s] - parts[s])[: _FINEST - sum(found)]
    return [each + (s in rest) for s, each in enumerate(found)]


class Mixture:
    """The order of a stream of several sources: a pure function, like `Order`, of which each source has its own.

    counts: the samples of each shard, by source; shards are numbered through. shares: see `shares`.
    """

    def __init__(self, seed: int, counts: Sequence[np.ndarray], shares: Sequence[int], lanes: int, window: int):
        self.seed = seed
        self.orders = [
            Order(fold_in(seed, "source", s) if s else seed, each, max(1, lanes * share // sum(shares)), window)
            for s, (each, share) in enumerate(zip(counts, shares, strict=True))
        ]
        self.first = np.cumsum([0, *(len(each) for each in counts)])
        self.columns = 1 << (lanes.bit_length() - 1)
        times = max(1, _ROWS // sum(shares))
        self._share = np.array(shares, dtype=np.int64) * times  # of each source, in a column of a block
        self._rows = int(self._share.sum())
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def at_a_time(self) -> int:
        """As of an `Order`, of all sources together."""
        return sum(order.at_a_time for order in self.orders)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard and sample within the shard, each int64 [b], for positions int64 [b] ≥ 0."""
        sources, own = self.split(positions)
        shard, sample = np.empty_like(positions), np.empty_like(positions)
        for source in np.unique(sources):
            here = sources == source
            within, sample[here] = self.orders[source].at(own[here])
            shard[here] = within + self.first[source]
        return shard, sample

    def split(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source and the position in its own stream, each int64 [b]."""
        row, column = np.divmod(positions, self.columns)
        blocks, row = np.divmod(row, self._rows)
        source, own = np.empty_like(positions), np.empty_like(positions)
        for block in np.unique(blocks):
            here = blocks == block
            dealt, nth = self._block(int(block))
            source[here] = dealt[row[here], column[here]]
            own[here] = nth[row[here], column[here]]
        return source, (blocks * self._share[source] + own) * self.columns + column

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each entry of a block, [rows, columns], its source and how many of it stand above it in the column."""
        if block not in self._blocks:
            if len(self._blocks) == 2:  # a batch may straddle two
                self._blocks.pop(next(iter(self._blocks)))
            row, column = np.indices((self._rows, self.columns), dtype=np.int64)
            low, high = np.full_like(row, block & 0xFFFFFFFF), np.full_like(row, block >> 32)
            words = philox(row, column, low, high, fold_in(self.seed, "sources"))
            drawn = np.argsort((words[0] << 31) | (words[1] >> 1), axis=0, kind="stable")
            dealt = np.repeat(np.arange(len(self._share)), self._share)[drawn]
            nth = np.empty_like(dealt)
            for source in range(len(self._share)):
                here = dealt == source
                nth[here] = (np.cumsum(here, axis=0) - 1)[here]
            self._blocks[block] = dealt, nth
        return self._blocks[block]
