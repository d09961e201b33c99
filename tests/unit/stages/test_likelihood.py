"""Log-likelihoods and divergences against torch.distributions, scipy and a toy whose likelihood is known."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from diffpipe.stages.likelihood import (
    bits_per_dim,
    discretized_logistic,
    gaussian_log_density,
    importance_weighted,
    kl_to_standard_normal,
)

EVERY_VALUE = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


def over_all_values(mean: float, log_scale: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """The log-probabilities of 0 to 255 under one mean and scale."""
    shape = EVERY_VALUE.shape
    return discretized_logistic(
        EVERY_VALUE, torch.full(shape, mean, dtype=dtype), torch.full(shape, log_scale, dtype=dtype)
    )


@pytest.mark.parametrize("mean", [-30.0, -1.0, -0.999, 0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("log_scale", [-9.0, -7.0, -2.0, 0.0, 6.0])
def test_the_bins_sum_to_one(mean: float, log_scale: float) -> None:
    assert over_all_values(mean, log_scale).exp().sum().item() == pytest.approx(1, abs=1e-12)
    log_probability = over_all_values(mean, log_scale, torch.float32)
    assert torch.isfinite(log_probability).all()
    assert torch.logsumexp(log_probability.double().flatten(), 0).item() == pytest.approx(0, abs=2e-3)


def test_a_bin_is_a_difference_of_scipys_cdf_and_the_edges_take_the_tails() -> None:
    mean, scale = 0.2, 0.4
    log_probability = over_all_values(mean, math.log(scale)).flatten()
    centre = EVERY_VALUE.double().flatten() / 127.5 - 1
    cdf = stats.logistic(mean, scale).cdf
    middle = torch.from_numpy(cdf(centre + 1 / 255) - cdf(centre - 1 / 255)).log()
    torch.testing.assert_close(log_probability[1:255], middle[1:255], rtol=1e-10, atol=0)
    assert log_probability[0].item() == pytest.approx(math.log(cdf(-1 + 1 / 255)), rel=1e-10)
    assert log_probability[255].item() == pytest.approx(math.log(1 - cdf(1 - 1 / 255)), rel=1e-10)


def test_a_pixel_far_from_a_narrow_mean_has_a_finite_loss_that_pulls_the_mean_to_it() -> None:
    images = torch.tensor([[[[200]]]], dtype=torch.uint8)
    mean = torch.full((1, 1, 1, 1), -0.9, requires_grad=True)
    log_probability = discretized_logistic(images, mean, torch.full((1, 1, 1, 1), -7.0))
    log_probability.sum().backward()
    assert torch.isfinite(log_probability).all()
    assert mean.grad is not None
    assert mean.grad.item() == pytest.approx(math.exp(7.0), rel=1e-4)  # far out the density falls as e^(-|x|/s)


def test_density_and_divergence_are_those_of_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_variance, z = (2 * torch.randn(3, 5, 2, 2, dtype=torch.float64, generator=generator) for _ in range(3))
    q = Normal(mean, (0.5 * log_variance).exp())
    torch.testing.assert_close(gaussian_log_density(z, mean, log_variance), q.log_prob(z))
    expected = kl_divergence(q, Normal(torch.zeros_like(mean), torch.ones_like(mean)))
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), expected)


def test_bits_per_dim_of_a_uniform_byte_is_eight() -> None:
    torch.testing.assert_close(bits_per_dim(torch.tensor([12 * math.log(256)]), 12), torch.tensor([8.0]))


def test_importance_weights_close_the_gap_to_a_known_likelihood() -> None:
    # z ~ N(0, 1), x | z ~ N(a z, s^2), so x ~ N(0, a^2 + s^2); q is the true posterior, widened and shifted.
    a, s, x, n = 1.5, 0.5, 1.2, 4000
    exact = Normal(0.0, math.hypot(a, s)).log_prob(torch.tensor(x)).item()
    variance = s**2 / (a**2 + s**2)
    q = Normal(torch.tensor(a * x / (a**2 + s**2) + 0.3, dtype=torch.float64), 1.5 * math.sqrt(variance))
    z = q.mean + q.stddev * torch.randn(256, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    zero = torch.zeros_like(z)
    log_weights = (
        gaussian_log_density(torch.full_like(z, x), a * z, zero + 2 * math.log(s))
        + gaussian_log_density(z, zero, zero)
        - gaussian_log_density(z, zero + q.mean, zero + q.variance.log())
    )
    bounds = [importance_weighted(log_weights[:k]).mean().item() for k in (1, 4, 16, 256)]
    # One sample gives the ELBO: log p(x) less the divergence from q to the true posterior.
    gap = kl_divergence(q, Normal(torch.tensor(a * x / (a**2 + s**2)), math.sqrt(variance))).item()
    assert bounds[0] == pytest.approx(exact - gap, abs=0.03)
    assert bounds == sorted(bounds)
    assert bounds[-1] == pytest.approx(exact, abs=0.005)
