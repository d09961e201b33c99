"""First and second moments of features in float64, which add up over processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

_ROWS = 1000  # features at a time: a product of few rows costs nearly as much


@dataclass(frozen=True)
class Moments:
    """The count n, the sum of x and the sum of x xᵀ over n feature vectors.

    They are float64, so that the order of the summation over processes does not change a score.
    """

    n: int
    total: Float64[Tensor, " d"]
    outer: Float64[Tensor, "d d"]

    @classmethod
    def of(cls, features: Float[Tensor, "n d"]) -> Moments:
        """The moments of the rows of `features`, which may be empty."""
        x = features.double()
        return cls(len(x), x.sum(0), x.T @ x)

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of features together."""
        return Moments(self.n + other.n, self.total + other.total, self.outer + other.outer)

    @property
    def mean(self) -> Float64[Tensor, " d"]:
        return self.total / self.n

    @property
    def covariance(self) -> Float64[Tensor, "d d"]:
        """The unbiased estimate, over n - 1. Needs n of at least 2."""
        return (self.outer - self.total.outer(self.mean)) / (self.n - 1)


class MomentSums:
    """Adds up the moments of features in one vector: n, Σx and Σxxᵀ, float64 [1 + d + d²].

    The sum of such vectors over processes is that of all their features. Products are taken of about 1,000 rows at a
    time, on the vector's device.
    """

    def __init__(self, sums: Float64[Tensor, " size"], dim: int):
        """sums: zeros of `size(dim)`, which this object fills."""
        self._sums, self._dim = sums, dim
        self._rows: list[Tensor] = []

    @staticmethod
    def size(dim: int) -> int:
        return 1 + dim + dim**2

    def add(self, features: Float[Tensor, "n d"]) -> None:
        """Add rows. They count once there are enough of them, or after `finish`."""
        self._rows.append(features)
        if sum(map(len, self._rows)) >= _ROWS:
            self.finish()

    def finish(self) -> None:
        """Count the rows that have waited for more."""
        if not self._rows:
            return
        x = torch.cat(self._rows).to(self._sums.device).double()
        count, total, outer = self._parts(self._sums)
        count += len(x)
        total += x.sum(0)
        outer.addmm_(x.T, x)
        self._rows = []

    def moments(self) -> Moments:
        """The moments of all rows so far, on the CPU."""
        count, total, outer = self._parts(self._sums.cpu())
        return Moments(int(count), total, outer)

    def _parts(self, sums: Float64[Tensor, " size"]) -> tuple[Tensor, Tensor, Tensor]:
        count, total, outer = sums.split([1, self._dim, self._dim**2])
        return count, total, outer.view(self._dim, self._dim)
