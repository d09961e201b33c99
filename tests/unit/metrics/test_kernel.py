"""The kernel distance against clean-fid's given the same subsets, and against its definition."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from diffpipe.errors import UserError
from diffpipe.metrics import kernel
from diffpipe.metrics.kernel import draw_subsets, kernel_distance


def features(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).gamma(1.0 + seed, 0.3, (n, d)).astype(np.float32))


def cleanfid_subsets(n: int, m: int, number: int, size: int, seed: int) -> list[kernel.Subset]:
    """The index lists that clean-fid draws from numpy's global generator: the second set's first."""
    np.random.seed(seed)
    size = min(n, m, size)
    drawn = [
        (np.random.choice(m, size, replace=False), np.random.choice(n, size, replace=False)) for _ in range(number)
    ]
    return [(i, j) for j, i in drawn]


@pytest.mark.parametrize(("n", "m", "size"), [(120, 90, 50), (60, 60, 1000), (30, 400, 20)])
def test_equals_cleanfid_given_its_subsets(n: int, m: int, size: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cleanfid import fid
    a, b = features(n, 48, 1), features(m, 48, 2)
    subsets = cleanfid_subsets(n, m, number=20, size=size, seed=7)
    np.random.seed(7)
    theirs = fid.kernel_distance(a.double().numpy(), b.double().numpy(), num_subsets=20, max_subset_size=size)
    assert kernel_distance(a, b, subsets) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("number", [1, 40])
def test_equals_the_definition_summed_pair_by_pair(number: int) -> None:
    # One subset of a large set goes block by block, forty of a small one through the whole kernel matrix.
    a, b = features(25, 6, 1), features(31, 6, 2)
    subsets = draw_subsets(25, 31, number=number, size=9)
    x, y = a.double().numpy(), b.double().numpy()

    def k(u: np.ndarray, v: np.ndarray) -> float:
        return float(u @ v / 6 + 1) ** 3

    values = []
    for i, j in subsets:
        within_x = np.mean([k(x[p], x[q]) for p in i for q in i if p != q])
        within_y = np.mean([k(y[p], y[q]) for p in j for q in j if p != q])
        values.append(within_x + within_y - 2 * np.mean([k(x[p], y[q]) for p in i for q in j]))
    assert kernel_distance(a, b, subsets) == pytest.approx(np.mean(values), rel=1e-10)


def test_is_unbiased_between_halves_of_one_distribution() -> None:
    # The estimate's mean over many pairs of sets is zero, and single estimates fall on both sides of it.
    x = features(4000, 8, 1)
    values = [kernel_distance(a, b, draw_subsets(50, 50, number=1)) for a, b in x.reshape(40, 2, 50, 8)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))


def test_subsets_are_distinct_indices_that_depend_on_the_seed_alone() -> None:
    subsets = draw_subsets(50, 80, number=10, size=30, seed=3)
    assert [(len(set(i)), len(set(j))) for i, j in subsets] == [(30, 30)] * 10
    assert all(0 <= i.min() <= i.max() < 50 and 0 <= j.min() <= j.max() < 80 for i, j in subsets)
    repeated, other = draw_subsets(50, 80, 10, 30, 3), draw_subsets(50, 80, 10, 30, 4)
    assert all(np.array_equal(i, k) and np.array_equal(j, m) for (i, j), (k, m) in zip(subsets, repeated, strict=True))
    assert not np.array_equal(subsets[0][0], other[0][0])
    assert not np.array_equal(subsets[0][0], subsets[1][0])
    assert len(draw_subsets(20, 80, number=1)[0][1]) == 20


def test_too_few_or_unfinite_features_are_refused() -> None:
    x = features(10, 4, 1)
    with pytest.raises(UserError, match="at least 2 images"):
        kernel_distance(x, x[:1], draw_subsets(10, 1))
    bad = x.clone()
    bad[0, 0] = float("inf")
    with pytest.raises(UserError, match="NaN or infinity"):
        kernel_distance(bad, x, draw_subsets(10, 10))
