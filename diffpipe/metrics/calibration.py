"""Calibration of a classifier's probabilities: reliability, expected calibration error, temperature.

A classifier is given by its logits, float64 [n k], whose softmax are its probabilities of the k classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Tensor

BINS = 15
_SHARPEST, _FLATTEST = 1e3, 1e-6  # inverse temperatures: beyond them the probabilities are 0, 1 or 1/k to all digits


class Reliability(NamedTuple):
    """Predictions by their probability, in equal-width bins of (0, 1]; an empty bin has means of 0.

    count: predictions per bin. confidence, accuracy: their mean probability, and the share that is correct.
    """

    count: Int[Tensor, " bins"]
    confidence: Float64[Tensor, " bins"]
    accuracy: Float64[Tensor, " bins"]

    @property
    def error(self) -> float:
        """The expected calibration error: the mean of |accuracy - confidence|.

        Source: Naeini et al. 2015; Guo et al. 2017, eq. 3.
        """
        weights = self.count / self.count.sum()
        return float((weights * (self.accuracy - self.confidence).abs()).sum())


def reliability(probabilities: Float64[Tensor, "n k"], labels: Int[Tensor, " n"], bins: int = BINS) -> Reliability:
    """The probability of the likeliest class of each sample, against how often that class is correct."""
    confidence, predicted = probabilities.max(dim=1)
    right = (predicted == labels).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    which = torch.bucketize(confidence, edges[1:-1])
    count = torch.bincount(which, minlength=bins)
    means = [torch.bincount(which, values, bins) / count.clamp(min=1) for values in (confidence, right)]
    return Reliability(count, *means)


def log_loss(logits: Float64[Tensor, "n k"], labels: Int[Tensor, " n"]) -> float:
    """The mean of -log p(label), in nats."""
    return float(-logits.log_softmax(dim=1).gather(1, labels[:, None]).mean())


def fit_temperature(logits: Float64[Tensor, "n k"], labels: Int[Tensor, " n"]) -> float:
    """The temperature by which to divide the logits for the smallest log-loss (Guo et al. 2017, section 4.2).

    The loss is convex in the inverse temperature, so bisection finds the only zero of its slope. The result lies
    between 1e-3, where every prediction is correct, and 1e6, where the logits tell nothing about the labels.
    """
    own = logits.gather(1, labels[:, None])[:, 0]

    def slope(inverse: float) -> float:
        expected = ((inverse * logits).softmax(dim=1) * logits).sum(dim=1)
        return float((expected - own).mean())

    low, high = _FLATTEST, _SHARPEST
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 1 / high


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval (1927), 95%, of a share of n: it stays within [0, 1] and holds at small n."""
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return centre - half, centre + half
