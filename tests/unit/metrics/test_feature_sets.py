"""Features that ranks share: after the reduction every rank has the moments by numpy, and the features in order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffpipe.metrics import feature_sets
from diffpipe.metrics.feature_sets import FeatureSet, FeatureShares, Needs, OneRank, Ranks, chunks
from diffpipe.metrics.moments import Moments
from diffpipe.train.runtime import Runtime
from tests.support.thread_ranks import on_ranks

A, B = ("generated", "a"), ("reference", "a")
FEATURES = {key: torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) for key, n in ((A, 170), (B, 203))}
NEEDS = {A: Needs(170, 5, halves=False, features=True), B: Needs(203, 5, halves=True, features=True)}


def reduced(ranks: Ranks, needs: dict[tuple[str, str], Needs]) -> dict[tuple[str, str], FeatureSet]:
    shares = FeatureShares(needs, torch.device("cpu"))
    for key, need in needs.items():
        for chunk in chunks(need.n, ranks.rank, ranks.world):
            shares.add(key, FEATURES[key][chunk.start : chunk.stop])
    return shares.reduce(ranks)


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
def test_every_rank_has_the_features_of_all(world: int, gathered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_sets, "_GATHERED", gathered)
    for sets in on_ranks(world, lambda runtime: reduced(runtime.comm, NEEDS)):
        for key, x in FEATURES.items():
            assert torch.equal(sets[key].all.features, x)
            assert_moments(sets[key].all.moments, x)
        assert sets[A].even is sets[A].odd is None
        for half, x in ((sets[B].even, FEATURES[B][0::2]), (sets[B].odd, FEATURES[B][1::2])):
            assert torch.equal(half.features, x)
            assert_moments(half.moments, x)


def test_features_are_kept_only_where_they_are_needed(runtime: Runtime) -> None:
    needs = {A: Needs(170, 5, halves=False, features=False)}
    for ranks in (OneRank(), runtime.comm):
        sets = reduced(ranks, needs)
        assert sets[A].all.features is None
        assert_moments(sets[A].all.moments, FEATURES[A])
