"""Moments: sums that merge, against numpy's own mean and covariance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffpipe.metrics.moments import Moments, MomentSums


def features(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(3.0, 2.0, (n, d)).astype(np.float32))


def test_mean_and_covariance_are_numpys() -> None:
    x = features(40, 7)
    moments = Moments.of(x)
    np.testing.assert_allclose(moments.mean.numpy(), x.double().mean(0).numpy(), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance.numpy(), np.cov(x.double().numpy(), rowvar=False), rtol=1e-12)


@pytest.mark.parametrize("cuts", [[10], [1, 39], [0, 13, 13, 40]])
def test_merged_shares_are_the_moments_of_all_rows(cuts: list[int]) -> None:
    x = features(40, 7)
    parts = [Moments.of(part) for part in torch.tensor_split(x, cuts)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged + part
    whole = Moments.of(x)
    assert merged.n == whole.n == 40
    torch.testing.assert_close(merged.total, whole.total, rtol=1e-14, atol=0)
    torch.testing.assert_close(merged.outer, whole.outer, rtol=1e-14, atol=0)


def test_sums_are_taken_in_float64() -> None:
    # 2^24 + 1 is not a float32: summed there, the ones would vanish.
    x = torch.tensor([[2.0**24]] + [[1.0]] * 100)
    moments = Moments.of(x)
    assert moments.total.item() == 2**24 + 100
    assert moments.outer.item() == 2**48 + 100


@pytest.mark.parametrize("rows", [50, 7, 1500])
def test_sums_in_one_vector_are_the_moments_and_add_up(rows: int) -> None:
    x = features(2600, 7)
    vectors = []
    for share in (x[:2100], x[2100:]):
        vector = torch.zeros(MomentSums.size(7), dtype=torch.float64)
        sums = MomentSums(vector, 7)
        for part in share.split(rows):
            sums.add(part)
        sums.finish()
        sums.finish()
        vectors.append(vector)
    moments, whole = MomentSums(vectors[0] + vectors[1], 7).moments(), Moments.of(x)
    assert moments.n == 2600
    torch.testing.assert_close(moments.total, whole.total, rtol=1e-13, atol=0)
    torch.testing.assert_close(moments.outer, whole.outer, rtol=1e-13, atol=0)
