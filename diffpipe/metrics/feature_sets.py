"""The features of sets of images that ranks share: each rank adds up its own, and reductions give all ranks all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from diffpipe.metrics.image_hashes import split_by_hash
from diffpipe.metrics.moments import Moments, MomentSums

T = TypeVar("T")
Key = tuple[str, str]
"""A source, such as `reference`, and the name of an extractor."""

# Fixed, whatever the number of processes: convolutions round differently for another batch size.
CHUNK = 50
_GATHERED = 2**24  # numbers that a rank receives at a time: 64 MB of features


@runtime_checkable
class Ranks(Protocol):
    """The processes that share the work, such as a `train.distributed.Communicator`. Its methods are collectives."""

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    def sum_in_place(self, value: Tensor) -> None:
        """Overwrite a tensor with its sum over all ranks."""
        ...

    def stack(self, value: Tensor) -> Tensor:
        """Every rank's tensor of one shape, in rank order: [world, *shape]."""
        ...

    def raise_on_all_ranks(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank; raise a UserError of one rank on all of them."""
        ...


@dataclass(frozen=True)
class OneRank:
    """A process alone."""

    rank: int = 0
    world: int = 1

    def sum_in_place(self, value: Tensor) -> None:
        pass

    def stack(self, value: Tensor) -> Tensor:
        return value[None]

    def raise_on_all_ranks(self, action: Callable[[], T]) -> T:
        return action()


def chunks(n: int, rank: int = 0, world: int = 1) -> list[range]:
    """This rank's chunks of range(n). The chunks of all ranks together are those of one process."""
    return [range(start, min(start + CHUNK, n)) for start in range(rank * CHUNK, n, world * CHUNK)]


def gather_chunks(
    own: Sequence[Shaped[Tensor, "_ ..."]], n: int, row: Tensor, ranks: Ranks, device: torch.device
) -> Shaped[Tensor, "n ..."]:
    """The rows that all ranks have of a set of n, in the order of their indices, on the CPU. A collective.

    own: the rows of each of this rank's `chunks`. They are sent from `device`, a few chunks at a time. row: one of
    their shape and type, since a rank may have no rows.
    """
    if ranks.world == 1:
        return torch.cat([*own])
    each = len(chunks(n, 0, ranks.world))  # the most chunks that a rank has
    together = max(1, _GATHERED // (ranks.world * CHUNK * row.numel()))
    parts = []
    for start in range(0, each, together):
        block = row.new_zeros(min(together, each - start), CHUNK, *row.shape, device=device)
        for place, rows in zip(block, own[start:], strict=False):
            place[: len(rows)] = rows
        parts.append(rearrange(ranks.stack(block), "world k b ... -> (k world b) ...").cpu())
    return torch.cat(parts)[:n]


class Features(NamedTuple):
    """Moments, and for all but the Fréchet distance the features themselves, in the order of their images' hashes."""

    moments: Moments
    features: Float[Tensor, "n d"] | None


class FeatureSet(NamedTuple):
    """The features of all images of a source, and of the halves of `split_by_hash` where these are scored."""

    all: Features
    halves: tuple[Features, Features] | None = None


@dataclass(frozen=True)
class Needs:
    """The needs of a score from one source's features.

    n: the images of the source. dim: the numbers in a feature vector. halves: whether one half of the images is scored
    against the other. features: whether the features themselves are needed beside their moments.
    """

    n: int
    dim: int
    halves: bool
    features: bool

    @property
    def hashes(self) -> bool:
        """Whether the hashes of the images are needed: for their halves, or for an order that is always the same."""
        return self.halves or self.features


class FeatureShares:
    """This rank's features of several sets, by key. All moments lie in one float64 tensor on `device`.

    So one reduction adds them up. Features are kept on the CPU where they are needed themselves, and where the set is
    split into halves, which is possible only once the hashes of all its images are known.
    """

    def __init__(self, needs: Mapping[Key, Needs], device: torch.device):
        parts = {key: 2 if need.halves else 1 for key, need in needs.items()}
        sizes = [MomentSums.size(needs[key].dim) for key, count in parts.items() for _ in range(count)]
        self.sums = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        views = iter(self.sums.split(sizes))
        self.needs = needs
        self._moments = {key: [MomentSums(next(views), needs[key].dim) for _ in range(n)] for key, n in parts.items()}
        self._chunks: dict[Key, list[Tensor]] = {key: [] for key in needs}

    def add(self, key: Key, features: Float[Tensor, "b d"]) -> None:
        """Take the next of this rank's `chunks` of the set."""
        need = self.needs[key]
        if not need.halves:
            self._moments[key][0].add(features)
        if need.hashes:
            self._chunks[key].append(features.cpu())

    def reduce(self, ranks: Ranks, hashes: Mapping[str, Int64[Tensor, " n"]]) -> dict[Key, FeatureSet]:
        """The sets with the features of all ranks, on the CPU. A collective.

        hashes: by source, of all its images, where some need asks for them.
        """
        for key, parts in self._moments.items():
            if self.needs[key].halves:
                self._add_halves(key, hashes[key[0]], ranks)
            for moments in parts:
                moments.finish()
        ranks.sum_in_place(self.sums)
        return {key: self._set(key, hashes, ranks) for key in self.needs}

    def _add_halves(self, key: Key, hashes: Int64[Tensor, " n"], ranks: Ranks) -> None:
        """Add up this rank's features of each half."""
        in_second = torch.zeros(len(hashes), dtype=torch.bool)
        in_second[split_by_hash(hashes)[1]] = True
        own = chunks(self.needs[key].n, ranks.rank, ranks.world)
        for chunk, features in zip(own, self._chunks[key], strict=True):
            second = in_second[chunk.start : chunk.stop]
            for moments, half in zip(self._moments[key], (~second, second), strict=True):
                moments.add(features[half])

    def _set(self, key: Key, hashes: Mapping[str, Int64[Tensor, " n"]], ranks: Ranks) -> FeatureSet:
        need, moments = self.needs[key], [sums.moments() for sums in self._moments[key]]
        x = None
        if need.features:
            order = hashes[key[0]].argsort(stable=True)
            row = torch.zeros(need.dim)
            x = gather_chunks(self._chunks[key], need.n, row, ranks, self.sums.device)[order]
        if not need.halves:
            return FeatureSet(Features(moments[0], x))
        first, second = moments
        halves = (None, None) if x is None else (x[: first.n], x[first.n :])
        return FeatureSet(Features(first + second, x), (Features(first, halves[0]), Features(second, halves[1])))
