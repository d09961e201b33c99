"""The kernel distance (KID): an unbiased squared maximum mean discrepancy, averaged over random subsets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from diffpipe.errors import UserError
from diffpipe.rng import permutation_start

Subset = tuple[Int64[np.ndarray, " size"], Int64[np.ndarray, " size"]]


def draw_subsets(n: int, m: int, number: int = 100, size: int = 1000, seed: int = 0) -> list[Subset]:
    """`number` pairs of index lists into n and m features, each of min(n, m, size) entries without repetition."""
    size = min(n, m, size)
    return [
        (permutation_start(size, n, seed, "kid a", s), permutation_start(size, m, seed, "kid b", s))
        for s in range(number)
    ]


def kernel_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], subsets: Sequence[Subset]) -> float:
    """The mean over `subsets` of the unbiased MMD² with the kernel k(x, y) = (x·y/d + 1)³, in float64.

    Raises UserError for subsets of fewer than 2 or features that are not finite.
    Source: Bińkowski et al. 2018, arXiv:1801.01401, section 4.
    """
    if any(len(i) < 2 or len(j) < 2 for i, j in subsets):
        raise UserError("a kernel distance needs at least 2 images on each side; give a larger n")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise UserError("features hold NaN or infinity; look at the images and the extractor")
    a, b = a.double(), b.double()
    rows_a, rows_b = ([torch.from_numpy(s[side]) for s in subsets] for side in (0, 1))
    # The within-set sums leave out the pairs of a feature with itself, which would bias the estimate.
    within_a = _pair_sums(a, a, rows_a, rows_a) - _diagonal_sums(a, rows_a)
    within_b = _pair_sums(b, b, rows_b, rows_b) - _diagonal_sums(b, rows_b)
    across = _pair_sums(a, b, rows_a, rows_b)
    i, j = (torch.tensor([len(r) for r in rows], dtype=torch.float64) for rows in (rows_a, rows_b))
    return float((within_a / (i * (i - 1)) + within_b / (j * (j - 1)) - 2 * across / (i * j)).mean())


def _kernel(x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]) -> Float64[Tensor, "n m"]:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _diagonal_sums(x: Float64[Tensor, "n d"], rows: Sequence[Tensor]) -> Float64[Tensor, " s"]:
    """For each subset i: the sum of k(x, x) over x[i]."""
    diagonal = (x.square().sum(1) / x.shape[1] + 1) ** 3
    return torch.stack([diagonal[i].sum() for i in rows])


def _pair_sums(
    x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"], rows: Sequence[Tensor], columns: Sequence[Tensor]
) -> Float64[Tensor, " s"]:
    """For each subset (i, j): the sum of k over all pairs of x[i] and y[j]."""
    if len(x) * len(y) > min(sum(len(i) * len(j) for i, j in zip(rows, columns, strict=True)), 5000**2):
        return torch.stack([_kernel(x[i], y[j]).sum() for i, j in zip(rows, columns, strict=True)])
    # One whole matrix (at most 200 MB) is less work than a block per subset; 0/1 rows select each subset.
    return ((_indicator(rows, len(x)) @ _kernel(x, y)) * _indicator(columns, len(y))).sum(1)


def _indicator(rows: Sequence[Tensor], n: int) -> Float64[Tensor, "s n"]:
    return torch.stack([torch.zeros(n, dtype=torch.float64).index_fill_(0, i, 1.0) for i in rows])
