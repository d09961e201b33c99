"""Several sources (sets of shards) in one stream, each with its weight.

A mixture decides which source each position takes its sample from, and at which position of that source's own stream.

The stream is dealt out in blocks of N rows and C columns; position p is in column p % C. In each column of a block
every source has its share of the N entries, in an order drawn for that column and block. It follows that

- the share of each source in every block is exact,
- a source comes to each position of its own stream once, so its own epochs are exact permutations,
- p and the source's own position agree modulo C, so a rank that stays in its lanes does so in each source.

Each source has its share of the lanes, so all of them together read from no more shards at a time than one alone would.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from diffpipe.data.config import DataConfig, SourceConfig
from diffpipe.data.index import shard_set
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.loader.order import VERSION, Order
from diffpipe.data.remote.cache import ShardCache
from diffpipe.errors import UserError, all_of
from diffpipe.plural import plural
from diffpipe.rng import fold_in, philox

_FINEST = 4096
_ROWS = 64


class MixedShardSet(ShardSet):
    """The shards of all sources, one source after the other. shares: the weights as whole numbers."""

    def __init__(self, sets: Sequence[ShardSet], weights: Sequence[float]):
        super().__init__([shard for each in sets for shard in each.shards])
        self.sets = tuple(sets)
        self.shares = shares(weights)
        if len(set(self.paths)) < len(self.paths):
            raise UserError("data.sources: a shard is in two of them; name it once, or change the weights")
        classes = max(shard.classes or 0 for shard in self.shards)
        if self.classes is not None and classes > len(self.classes):
            raise UserError(
                f"data.sources: a label is {classes - 1}, but the index of another source names "
                f"{plural(len(self.classes), 'class', 'classes')}; label the sources alike"
            )

    def rows(self, *, members: bool) -> Any:
        """The share of each source and its rows."""
        sources = zip(self.shares, self.sets, strict=True)
        return {"sources": [{"weight": str(w), "shards": s.rows(members=members)} for w, s in sources]}


def load_sources(
    train: str | Sequence[str] | None, sources: Sequence[SourceConfig], cache: ShardCache | None = None
) -> ShardSet:
    """The shards of `data.train`, or of all `data.sources`. Raises UserError, also where these disagree."""
    if train is not None:
        return shard_set.load(train, cache=cache)
    sets = all_of(*(functools.partial(shard_set.load, source.url, cache=cache) for source in sources))
    return sets[0] if len(sets) == 1 else MixedShardSet(sets, [source.weight for source in sources])


def build_order(shard_set: ShardSet, seed: int, config: DataConfig) -> Order | Mixture:
    """The order of the stream over these shards."""
    settings = config.interleave, config.shuffle_window, config.order_version or VERSION
    if isinstance(shard_set, MixedShardSet):
        counts = [source.counts for source in shard_set.sets]
        return Mixture(seed, counts, shard_set.shares, *settings)
    return Order(seed, shard_set.counts, *settings)


def cache_warning(shard_set: ShardSet, order: Order | Mixture, cache_bytes: int, rank_share: float = 1.0) -> str | None:
    """A warning, if a cache of `cache_bytes` is too small for the remote shards that are read from at a time.

    rank_share: the fraction of all ranks that use this cache.
    """
    remote = [shard.bytes for shard in shard_set.shards if shard.remote is not None]
    shards = math.ceil(order.concurrent_shards * rank_share)
    needed = shards * sum(remote) // max(1, len(remote))
    if needed <= cache_bytes or sum(remote) <= cache_bytes:
        return None
    return (
        f"data.cache_bytes is {cache_bytes:,}, but the "
        f"{plural(shards, 'shard that is read from at a time has', 'shards that are read from at a time have')} "
        f"{needed:,}: they would be fetched again and again; raise it, or start with a smaller data.interleave"
    )


def shares(weights: Sequence[float]) -> list[int]:
    """The weights as the smallest whole numbers in the same proportions.

    Where their sum would exceed 4096, they are rounded to 4096ths. Raises UserError for a weight below one 4096th.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    denominator = math.lcm(*(fraction.denominator for fraction in exact))
    whole = [int(fraction * denominator) for fraction in exact]
    divisor = math.gcd(*whole)
    if sum(whole) // divisor <= _FINEST:
        return [number // divisor for number in whole]
    parts = [number * _FINEST / sum(whole) for number in whole]
    if min(parts) < 1:
        raise UserError(
            f"data.sources: a weight of {weights[parts.index(min(parts))]:g} is less than 1/{_FINEST} of all; "
            f"give it more, or leave the source out"
        )
    rounded = [int(part) for part in parts]
    raised = sorted(range(len(parts)), key=lambda s: rounded[s] - parts[s])[: _FINEST - sum(rounded)]
    return [number + (s in raised) for s, number in enumerate(rounded)]


class Mixture:
    """The order of a stream of several sources: like `Order` a pure function, made of one `Order` for each source.

    counts: the samples of each shard, by source. The shards of all sources are numbered through. shares: see `shares`.
    """

    def __init__(
        self,
        seed: int,
        counts: Sequence[np.ndarray],
        shares: Sequence[int],
        interleave: int = 64,
        shuffle_window: int = 16384,
        version: int = VERSION,
    ):
        self.seed = seed
        self.orders = [
            Order(
                fold_in(seed, "source", s) if s else seed,
                source_counts,
                max(1, interleave * share // sum(shares)),
                shuffle_window,
                version,
            )
            for s, (source_counts, share) in enumerate(zip(counts, shares, strict=True))
        ]
        self.first_shard = np.cumsum([0, *(len(source_counts) for source_counts in counts)])
        self.columns = 1 << (interleave.bit_length() - 1)
        self._share = np.array(shares, dtype=np.int64) * max(1, _ROWS // sum(shares))  # entries in a column of a block
        self._rows = int(self._share.sum())
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def concurrent_shards(self) -> int:
        """As `Order.concurrent_shards`, over all sources together."""
        return sum(order.concurrent_shards for order in self.orders)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard and sample within the shard, each int64 [b], at positions int64 [b] ≥ 0."""
        sources, own = self.split(positions)
        shard, sample = np.empty_like(positions), np.empty_like(positions)
        for source in np.unique(sources):
            rows = sources == source
            within, sample[rows] = self.orders[source].at(own[rows])
            shard[rows] = within + self.first_shard[source]
        return shard, sample

    def split(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source at each position, and the position in its own stream, each int64 [b]."""
        row, column = np.divmod(positions, self.columns)
        blocks, row = np.divmod(row, self._rows)
        source, own = np.empty_like(positions), np.empty_like(positions)
        for block in np.unique(blocks):
            inside = blocks == block
            sources, nth = self._block(int(block))
            source[inside] = sources[row[inside], column[inside]]
            own[inside] = nth[row[inside], column[inside]]
        return source, (blocks * self._share[source] + own) * self.columns + column

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each entry of a block, [rows, columns], its source and how many of that source are above it."""
        if block not in self._blocks:
            if len(self._blocks) == 2:  # a batch may straddle two blocks
                self._blocks.pop(next(iter(self._blocks)))
            row, column = np.indices((self._rows, self.columns), dtype=np.int64)
            low, high = np.full_like(row, block & 0xFFFFFFFF), np.full_like(row, block >> 32)
            words = philox(row, column, low, high, fold_in(self.seed, "sources"))
            shuffled = np.argsort((words[0] << 31) | (words[1] >> 1), axis=0, kind="stable")
            sources = np.repeat(np.arange(len(self._share)), self._share)[shuffled]
            nth = np.empty_like(sources)
            for source in range(len(self._share)):
                mask = sources == source
                nth[mask] = (np.cumsum(mask, axis=0) - 1)[mask]
            self._blocks[block] = sources, nth
        return self._blocks[block]
