"""First and second moments of features in float64, which add up over processes."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Float64
from torch import Tensor


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
