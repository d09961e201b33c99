"""Features that ranks share: after the reduction every rank has the moments by numpy, and the features by hashes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffpipe.metrics import feature_sets
from diffpipe.metrics.feature_sets import FeatureSet, FeatureShares, Needs, OneRank, Ranks, chunks, gather_chunks
from diffpipe.metrics.image_hashes import split_by_hash
from diffpipe.metrics.moments import Moments
from diffpipe.train.runtime import Runtime
from tests.support.thread_ranks import on_ranks

A, B = ("generated", "a"), ("reference", "a")
FEATURES = {key: torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) for key, n in ((A, 170), (B, 203))}
HASHES = {
    source: torch.randint(-(2**63), 2**63 - 1, (len(x),), generator=torch.Generator().manual_seed(0))
    for (source, _), x in FEATURES.items()
}
NEEDS = {A: Needs(170, 5, halves=False, features=True), B: Needs(203, 5, halves=True, features=True)}


def reduced(ranks: Ranks, needs: dict[tuple[str, str], Needs]) -> dict[tuple[str, str], FeatureSet]:
    shares = FeatureShares(needs, torch.device("cpu"))
    for key, need in needs.items():
        for chunk in chunks(need.n, ranks.rank, ranks.world):
            shares.add(key, FEATURES[key][chunk.start : chunk.stop])
    return shares.reduce(ranks, HASHES)


def assert_moments(moments: Moments, features: torch.Tensor) -> None:
    x = features.double().numpy()
    assert moments.n == len(x)
    np.testing.assert_allclose(moments.mean.numpy(), x.mean(0), atol=1e-12)
    np.testing.assert_allclose(moments.covariance.numpy(), np.cov(x.T), atol=1e-12)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_the_ranks_share_all_chunks(world: int) -> None:
    parts = [chunk for rank in range(world) for chunk in chunks(170, rank, world)]
    assert sorted(i for chunk in parts for i in chunk) == list(range(170))
    assert sorted(parts, key=lambda chunk: chunk.start) == chunks(170)


@pytest.mark.parametrize("gathered", [1, 2**24])  # a chunk of each rank at a time, and all of them
@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_every_rank_has_the_features_of_all_by_their_hashes(
    world: int, gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_sets, "_GATHERED", gathered)
    for sets in on_ranks(world, lambda runtime: reduced(runtime.comm, NEEDS)):
        for key, x in FEATURES.items():
            assert torch.equal(sets[key].all.features, x[HASHES[key[0]].argsort()])
            assert_moments(sets[key].all.moments, x)
        assert sets[A].halves is None
        for half, indices in zip(sets[B].halves, split_by_hash(HASHES["reference"]), strict=True):
            assert torch.equal(half.features, FEATURES[B][indices])
            assert_moments(half.moments, FEATURES[B][indices])


def test_features_are_kept_only_where_they_are_needed(runtime: Runtime) -> None:
    needs = {A: Needs(170, 5, halves=False, features=False)}
    for ranks in (OneRank(), runtime.comm):
        sets = reduced(ranks, needs)
        assert sets[A].all.features is None
        assert_moments(sets[A].all.moments, FEATURES[A])


def test_halves_need_no_features_to_be_gathered(runtime: Runtime) -> None:
    sets = reduced(runtime.comm, {B: Needs(203, 5, halves=True, features=False)})
    for half, indices in zip(sets[B].halves or (), split_by_hash(HASHES["reference"]), strict=True):
        assert half.features is None
        assert_moments(half.moments, FEATURES[B][indices])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_chunks_of_numbers_are_gathered_in_order_also_from_ranks_without_any(world: int) -> None:
    numbers = torch.arange(60)

    def gathered(runtime: Runtime) -> torch.Tensor:
        own = [numbers[chunk.start : chunk.stop] for chunk in chunks(60, runtime.comm.rank, world)]
        return gather_chunks(own, 60, torch.zeros((), dtype=torch.int64), runtime.comm, torch.device("cpu"))

    for result in on_ranks(world, gathered):
        assert torch.equal(result, numbers)
