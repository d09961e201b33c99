"""Likelihoods with the exact denoiser of known data: the bound lies above the true bits, and the flow's equals them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from diffpipe.diffusion.denoiser import Denoise, Denoised
from diffpipe.diffusion.ode_likelihood import ODESettings, log_density
from diffpipe.diffusion.parameterization import Prediction
from diffpipe.diffusion.process import CLEAN, NoiseLevel, posterior_variance, q_sample, step_variance
from diffpipe.diffusion.vlb import variational_lower_bound
from diffpipe.rng import KeyedRNG
from tests.support.ground_truth import (
    CORRELATED,
    LINE,
    MODES,
    PAIRS,
    Mixture,
    exact_denoiser,
    first_level,
    schedule_of,
    tensor,
)

WIDTH = 2 / 255  # of a level
GAUSSIAN, MIXTURE = (  # within [-1, 1]
    Mixture(data.weights, 0.35 * data.means, 0.35**2 * data.covariances) for data in (CORRELATED, MODES)
)


def quantized(data: Mixture, n: int) -> tuple[Tensor, Tensor]:
    """n images on the grid of 256 levels, as [n, d, 1, 1], and the bits of each: those of the density at the middle.

    A component's standard deviation is 5 widths or more, where the middle is right to 0.001 bits.
    """
    x0 = ((data.sample(n) + 1) * 127.5).round() / 127.5 - 1
    assert x0.abs().max() <= 1
    bits = -(data.log_density(x0, CLEAN) + x0.shape[1] * math.log(WIDTH)) / math.log(2) / x0.shape[1]
    return x0[:, :, None, None].float(), bits


def of_images(denoise: Denoise) -> Denoise:
    """The denoiser of points [b, d], for images [b, d, 1, 1]."""

    def image_denoiser(x: Tensor, level: NoiseLevel) -> Denoised:
        x0, share = denoise(x.flatten(1), level)
        return Denoised(x0.reshape(x.shape), None if share is None else share.reshape(x.shape))

    return image_denoiser


def excess(denoise: Denoise, data: Mixture, schedule: Any, n: int, **options: Any) -> tuple[float, float]:
    """The mean of the bound's bits/dim over the true ones, and its standard error."""
    x0, bits = quantized(data, n)
    options = {"variance": "small"} | options
    score = variational_lower_bound(of_images(denoise), schedule, x0, KeyedRNG(0, torch.arange(n)), **options)
    difference = score.per_sample.double() - bits
    return difference.mean().item(), difference.std().item() / math.sqrt(n)


TIGHT = {"edm": 0.4, "flow": 0.4}  # bits/dim; with timesteps: 0.3
BOUNDS: list[tuple[str, Prediction, Mixture]] = [
    ("linear", "eps", GAUSSIAN),
    ("scaled_linear", "eps", MIXTURE),
    ("cosine", "v", GAUSSIAN),
    ("sigmoid", "x0", MIXTURE),
    ("zero_terminal", "v", GAUSSIAN),
    ("edm", "edm", MIXTURE),
    ("flow", "flow", GAUSSIAN),
]


@pytest.mark.parametrize(("kind", "prediction", "data"), BOUNDS)
def test_the_bound_is_above_the_true_bits_and_tight_with_many_steps(
    kind: str, prediction: Prediction, data: Mixture
) -> None:
    denoise, options = exact_denoiser(data, prediction), {"evaluations": 30}
    large, error = excess(denoise, data, schedule_of(kind), 1500, variance="large", **options)
    assert 0 < large < TIGHT.get(kind, 0.3), (large, error)
    small, error = excess(denoise, data, schedule_of(kind), 1500, variance="small", **options)
    assert small > 3 * error, (small, error)
    if kind not in TIGHT:
        few, error = excess(denoise, data, schedule_of(kind, steps=25), 500, variance="large")
        assert few > large + 3 * error, (few, large, error)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine", "sigmoid", "zero_terminal"])
def test_every_prediction_has_the_same_bound(kind: str) -> None:
    schedule = schedule_of(kind, steps=30)
    predictions: list[Prediction] = ["x0", "v"] if kind == "zero_terminal" else ["x0", "v", "eps"]
    bounds = [excess(exact_denoiser(MIXTURE, p), MIXTURE, schedule, 20)[0] for p in predictions]
    assert bounds == pytest.approx([bounds[0]] * len(bounds), abs=1e-5)


@pytest.mark.parametrize(("kind", "prediction"), PAIRS)
def test_the_flows_likelihood_equals_the_true_density_within_its_standard_error(
    kind: str, prediction: Prediction
) -> None:
    n, schedule = 300, schedule_of(kind)
    data = MODES if PAIRS.index((kind, prediction)) % 2 else CORRELATED
    level, rng = first_level(schedule), KeyedRNG(0, torch.arange(n))
    x = q_sample(level, data.sample(n), rng.normal("noise", data.means.shape[1:]).double())
    density = log_density(exact_denoiser(data, prediction), schedule, x, rng, ODESettings(steps=25))
    difference = density.prior + density.divergence.mean(0) - data.log_density(x, level)
    error = (density.divergence.var(0) / 2).sum().sqrt().item() / n
    assert difference.mean().abs() < 3.5 * error, (difference.mean(), error)
    assert difference.std().item() / math.sqrt(n) == pytest.approx(error, rel=0.5)  # a mixture's has long tails
    assert error < 0.02


@pytest.mark.parametrize(("kind", "prediction"), [("linear", "eps"), ("cosine", "v"), ("edm", "edm"), ("flow", "x0")])
def test_with_an_exact_trace_it_equals_the_density_of_every_point(kind: str, prediction: Prediction) -> None:
    # In one dimension each sign gives the exact trace. The noise that sampling starts from costs up to 1e-4 nats.
    schedule = schedule_of(kind)
    level = first_level(schedule)
    x = torch.linspace(-1, 1, 11, dtype=torch.float64)[:, None]
    density = log_density(
        exact_denoiser(LINE, prediction), schedule, x, KeyedRNG(0, torch.arange(11)), ODESettings(steps=40)
    )
    torch.testing.assert_close(density.prior + density.divergence[0], LINE.log_density(x, level), rtol=0, atol=1.4e-3)


def learned(denoise: Denoise, schedule: Any, std: float) -> Denoise:
    """The denoiser with the optimal variance for a Gaussian of this standard deviation.

    p(x_{t-1} | x_t) is normal. Its variance is the posterior's, and that of x_0 given x_t times the squared coefficient
    of x_0 in the posterior's mean.
    """
    chain = schedule.chain()

    def with_share(x: Tensor, level: NoiseLevel) -> Denoised:
        t = level.time
        lower = NoiseLevel(
            *(torch.where(t > 0, c[(t - 1).clamp(min=0)], clean) for c, clean in zip(chain, CLEAN, strict=True))
        )
        of_x0 = std**2 * level.sigma**2 / (level.alpha**2 * std**2 + level.sigma**2)
        coefficient = lower.alpha * step_variance(level, lower) / level.sigma**2
        optimal = posterior_variance(level, lower) + coefficient**2 * of_x0
        following = NoiseLevel(*(c[t + (t == 0)] for c in chain))
        least = torch.where(t > 0, posterior_variance(level, lower), posterior_variance(following, level))
        share = (optimal / least).log() / (step_variance(level, lower) / least).log()
        return Denoised(denoise(x, level).x0, share[:, None].expand(x.shape))

    return with_share


def test_the_optimal_variance_of_a_gaussian_is_tighter_than_the_fixed_ones_at_few_steps() -> None:
    std = 0.2
    data = Mixture(
        tensor(1.0), torch.zeros(1, 2, dtype=torch.float64), std**2 * torch.eye(2, dtype=torch.float64)[None]
    )
    schedule = schedule_of("cosine", steps=12)
    denoise = exact_denoiser(data, "v")
    (small, e_1), (large, e_2), (optimal, e_3) = (
        excess(denoise, data, schedule, 800, variance="small"),
        excess(denoise, data, schedule, 800, variance="large"),
        excess(learned(denoise, schedule, std), data, schedule, 800),
    )
    assert optimal + 4 * (e_3 + min(e_1, e_2)) < min(small, large)
    assert abs(optimal) < 4 * e_3 + 0.02  # the reverse chain is exact
