"""The grid: numbers come back, in the bits of their density, however far from the mean."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diffpipe.coding.grid import Grid
from diffpipe.coding.message import Message

N = 40_000
NORMAL_ENTROPY = math.log2(math.sqrt(2 * math.pi * math.e))


@pytest.mark.parametrize("bins", [2, 4, 16])
def test_what_is_drawn_has_the_mean_and_the_variance_and_takes_its_entropy(bins: int) -> None:
    """Without Sheppard's correction, 4 bins would add 0.5% to the variance: seven of its standard errors."""
    grid, message = Grid(1 / bins), Message()
    mean = np.random.default_rng(0).normal(size=(N // 100, 100))
    k = grid.pop_sample(message, mean, np.ones_like(mean))
    residual = grid.values(k) - mean
    assert residual.mean() == pytest.approx(0, abs=4 / math.sqrt(N))
    assert residual.var() == pytest.approx(1, abs=4 * math.sqrt(2 / N))
    assert message.initial_bits / N == pytest.approx(NORMAL_ENTROPY + math.log2(bins), rel=0.005)


def test_bits_back_costs_the_divergence() -> None:
    """Drawn from q and coded under p: KL(q || p), whatever the grid, for Gaussians in closed form."""
    difference, ratio = 0.8, 1.5
    divergence = math.log2(ratio) + ((1 + difference**2) / (2 * ratio**2) - 0.5) / math.log(2)
    zero, one = np.zeros(N), np.ones(N)
    for bins in (4, 32):
        grid, message = Grid(1 / bins), Message()
        k = grid.pop_sample(message, zero, one)
        grid.push(message, k, zero + difference, ratio * one)
        assert (message.bits - message.initial_bits) / N == pytest.approx(divergence, abs=0.01)


def test_numbers_far_from_the_mean_come_back() -> None:
    grid, message = Grid(1e-3), Message()
    k = np.array([0, 5, -70_000, 123_456_789, -2_000_000_000, 8])
    mean, std = np.zeros(6), np.array([0.01, 1e-5, 0.01, 0.01, 0.01, 0.02])
    grid.push(message, k, mean, std)
    assert message.bits < 4 * 64 + 3 * 24 + 64
    assert np.array_equal(grid.pop(Message(words=message.words()), mean, std), k)


def test_a_sample_is_undone_with_its_scrambling() -> None:
    grid, encoder = Grid(0.25), Message(3)
    mean, std = np.linspace(-5, 5, 60).reshape(3, 20), np.full((3, 20), 0.7)
    drawn = [grid.pop_sample(encoder, mean, std, stream=i) for i in range(3)]
    assert not np.array_equal(drawn[0], drawn[1])
    decoder = Message(3, encoder.words())
    for i in reversed(range(3)):
        grid.push_sample(decoder, drawn[i], mean, std, stream=i)
    assert decoder.is_initial()
