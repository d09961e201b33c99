"""The features of sets of images that ranks share: each rank adds up its own, and reductions give all ranks all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

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


class Features(NamedTuple):
    """Moments, and for all but the Fréchet distance the features themselves in the order of their indices."""

    moments: Moments
    features: Float[Tensor, "n d"] | None


class FeatureSet(NamedTuple):
    """The features of all images of a source; of even and odd indices, too, where its halves are scored."""

    all: Features
    even: Features | None = None
    odd: Features | None = None


@dataclass(frozen=True)
class Needs:
    """The needs of a score from one source's features.

    n: the images of the source. dim: the numbers in a feature vector. halves: whether the even and the odd indices are
    scored against each other. features: whether the features themselves are needed beside their moments.
    """

    n: int
    dim: int
    halves: bool
    features: bool


class FeatureShares:
    """This rank's features of several sets, by key. All moments lie in one float64 tensor on `device`.

    So one reduction adds them up. Features are kept on the CPU, where they are needed at all.
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
        parts = self._moments[key]
        for i, moments in enumerate(parts):  # a chunk starts at an even index
            moments.add(features[i :: len(parts)])
        if self.needs[key].features:
            self._chunks[key].append(features.cpu())

    def reduce(self, ranks: Ranks) -> dict[Key, FeatureSet]:
        """The sets with the features of all ranks, on the CPU. A collective."""
        for parts in self._moments.values():
            for moments in parts:
                moments.finish()
        ranks.sum_in_place(self.sums)
        return {key: self._set(key, ranks) for key in self.needs}

    def _set(self, key: Key, ranks: Ranks) -> FeatureSet:
        x = self._gather(key, ranks) if self.needs[key].features else None
        if not self.needs[key].halves:
            return FeatureSet(Features(self._moments[key][0].moments(), x))
        even, odd = (sums.moments() for sums in self._moments[key])
        halves = (None, None) if x is None else (x[0::2], x[1::2])
        return FeatureSet(Features(even + odd, x), Features(even, halves[0]), Features(odd, halves[1]))

    def _gather(self, key: Key, ranks: Ranks) -> Float[Tensor, "n d"]:
        """The features of all ranks, in the order of their indices. They are gathered a few chunks at a time."""
        need, own = self.needs[key], self._chunks[key]
        if ranks.world == 1:
            return torch.cat(own)
        each = len(chunks(need.n, 0, ranks.world))  # the most chunks that a rank has
        together = max(1, _GATHERED // (ranks.world * CHUNK * need.dim))
        parts = []
        for start in range(0, each, together):
            block = torch.zeros(min(together, each - start), CHUNK, need.dim, device=self.sums.device)
            for row, features in zip(block, own[start:], strict=False):
                row[: len(features)] = features
            parts.append(rearrange(ranks.stack(block), "world k b d -> (k world b) d").cpu())
        return torch.cat(parts)[: need.n]
