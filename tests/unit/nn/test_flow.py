"""Layers of flows: inverses, log-determinants against autograd, and their start."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffpipe.nn.flow import (
    ActNorm,
    Chain,
    Coupling,
    Dequantizer,
    InvertibleConv,
    Prior,
    bounded,
    one_hot,
    squeeze,
    unsqueeze,
)
from tests.support.randomized import normal, randomized


def test_the_dequantizers_log_determinant_is_that_of_its_jacobian() -> None:
    torch.manual_seed(0)
    net = randomized(Dequantizer(1, steps=2, hidden=8)).double()
    eps, x = normal(2, 1, 4, 4).double(), torch.linspace(-1, 1, 32, dtype=torch.float64).reshape(2, 1, 4, 4)
    u, log_det = net(eps, x)
    assert u.min() > 0
    assert u.max() < 1
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda e, i=i: net(e[None], x[i : i + 1])[0][0], eps[i])
        expected = torch.linalg.slogdet(jacobian.reshape(16, 16)).logabsdet
        torch.testing.assert_close(log_det[i], expected, rtol=0, atol=1e-9)


def test_a_fresh_dequantizer_is_exactly_uniform() -> None:
    torch.manual_seed(0)
    eps = normal(64, 1, 4, 4)
    with torch.no_grad():
        u, log_det = Dequantizer(1, steps=2, hidden=8)(eps, torch.zeros_like(eps))
    log_normal = torch.distributions.Normal(0, 1).log_prob(eps).sum((1, 2, 3))
    torch.testing.assert_close(log_det, log_normal, rtol=0, atol=1e-4)  # so log q(u) = 0
    assert u.mean() == pytest.approx(0.5, abs=0.03)
    assert u.var() == pytest.approx(1 / 12, abs=0.005)


def test_the_invertible_convolution_starts_as_a_rotation_and_ignores_autocast() -> None:
    torch.manual_seed(0)
    layer = InvertibleConv(12)
    x = normal(2, 12, 3, 3)
    y, log_det = layer(x)
    torch.testing.assert_close(y.square().sum(1), x.square().sum(1))
    torch.testing.assert_close(log_det, torch.zeros(2), rtol=0, atol=1e-4)
    randomized(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x)[0], layer(x)[0].float())
        torch.testing.assert_close(layer.inverse(layer(x)[0]), x, rtol=0, atol=1e-5)


def layers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "actnorm": ActNorm(4),
        "convolution": InvertibleConv(4),
        "coupling": Coupling(4, 8, c_context=3),
        "chain": Chain(4, steps=2, hidden=8, c_context=3),
    }


@pytest.mark.parametrize("name", layers())
def test_each_layer_is_inverted_and_its_log_determinant_is_that_of_its_jacobian(name: str) -> None:
    layer = randomized(layers()[name], std=0.3).double()
    x, context = normal(2, 4, 2, 2).double(), normal(2, 3, 1, 1).double()
    y, log_det = layer(x, context)
    torch.testing.assert_close(layer.inverse(y, context), x, rtol=0, atol=1e-9)  # pyright: ignore[reportCallIssue]
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda one, i=i: layer(one[None], context[i : i + 1])[0][0],
            x[i],
        )
        expected = torch.linalg.slogdet(jacobian.reshape(16, 16)).logabsdet
        torch.testing.assert_close(log_det[i], expected, rtol=0, atol=1e-9)


def test_the_prior_standardizes_by_a_gaussian_of_the_other_channels_and_the_label() -> None:
    torch.manual_seed(0)
    prior = randomized(Prior(2, 4, 3), std=0.3)
    x, given, context = normal(2, 2, 3, 3), normal(2, 4, 3, 3).flip(0), normal(2, 3, 1, 1)
    z, log_det = prior(x, given, context)
    torch.testing.assert_close(prior.inverse(z, given, context), x)  # pyright: ignore[reportCallIssue]
    mean = prior.inverse(torch.zeros_like(x), given, context)  # pyright: ignore[reportCallIssue]
    std = prior.inverse(torch.ones_like(x), given, context) - mean  # pyright: ignore[reportCallIssue]
    density = torch.distributions.Normal(mean, std).log_prob(x).sum((1, 2, 3))
    standard = torch.distributions.Normal(0, 1).log_prob(z).sum((1, 2, 3))
    torch.testing.assert_close(standard + log_det, density, rtol=1e-4, atol=1e-4)


def test_squeezing_keeps_every_block_of_two_by_two_together() -> None:
    x = normal(2, 3, 4, 6)
    assert torch.equal(squeeze(x), F.pixel_unshuffle(x, 2))
    assert torch.equal(unsqueeze(squeeze(x)), x)


def test_a_start_gives_mean_zero_and_deviation_one_and_survives_a_constant_channel() -> None:
    layer, x = ActNorm(3), 5 * normal(64, 3, 4, 4) + torch.tensor([1.0, -7.0, 0.0])[:, None, None]
    x[:, 2] = 4.0
    layer.start(x)
    y, _ = layer(x)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.std((0, 2, 3), correction=0), torch.tensor([1.0, 1.0, 0.0]), rtol=0, atol=1e-5)


def test_log_scales_are_bounded_and_labels_are_rows_of_an_identity_matrix() -> None:
    raw = torch.tensor([-1e9, -1e-3, 0.0, 1e-3, 1e9])
    torch.testing.assert_close(bounded(raw), torch.tensor([-2.0, -1e-3, 0.0, 1e-3, 2.0]))
    labels = torch.tensor([2, 0, 1])
    assert torch.equal(one_hot(labels, 4, torch.zeros(1)), F.one_hot(labels, 4).float())
