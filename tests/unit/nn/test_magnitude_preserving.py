"""The magnitude-preserving layers against the equations of Karras et al. 2024, and their projection."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from diffpipe.nn.magnitude_preserving import (
    MPConv,
    MPFourier,
    MPLayer,
    MPLinear,
    magnitude,
    mp_cat,
    mp_silu,
    mp_sum,
    normalize,
)
from tests.support.randomized import normal


def rms(x: torch.Tensor) -> float:
    return math.sqrt(np.square(x.detach().double().numpy()).mean())


def test_the_constant_of_silu_is_its_magnitude_for_normal_inputs() -> None:
    # Equation 81, integrated over the normal density.
    x = np.linspace(-12, 12, 20001)
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    expected = math.sqrt(np.trapezoid((x / (1 + np.exp(-x))) ** 2 * density, x))
    x0 = torch.tensor([0.7], dtype=torch.float64)
    assert (F.silu(x0) / mp_silu(x0)).item() == pytest.approx(expected, abs=5e-4)


def test_a_sum_has_the_weights_of_the_paper_and_keeps_the_magnitude() -> None:
    a, b = normal(2, 400, 40).unbind()
    for t in (0.0, 0.3, 0.5, 1.0):
        expected = ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)  # equation 88
        torch.testing.assert_close(mp_sum(a, b, t), expected)
        assert rms(mp_sum(a, b, t)) == pytest.approx(1, rel=0.02)


def test_a_concatenation_weights_its_halves_whatever_their_channels() -> None:
    a, b, t = normal(50, 3, 8, 8), normal(50, 12, 8, 8), 0.4
    joined = mp_cat(a, b, t)
    scale = math.sqrt((3 + 12) / ((1 - t) ** 2 + t**2))  # equation 103
    expected = torch.cat([scale * (1 - t) / math.sqrt(3) * a, scale * t / math.sqrt(12) * b], dim=1)
    torch.testing.assert_close(joined, expected)
    assert rms(joined) == pytest.approx(1, rel=0.02)
    # The parts contribute (1 - t)^2 : t^2 to the energy.
    energy_a, energy_b = joined[:, :3].square().sum(), joined[:, 3:].square().sum()
    assert (energy_a / energy_b).item() == pytest.approx((0.6 / 0.4) ** 2, rel=0.05)


def test_fourier_features_have_magnitude_one_and_are_those_of_the_paper() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = MPFourier(4000)
    x = torch.tensor([-1.5, 0.0, 0.8])
    expected = math.sqrt(2) * torch.cos(x[:, None] * features.frequencies[None] + features.phases[None])  # equation 75
    torch.testing.assert_close(features(x), expected)
    assert rms(features(x)) == pytest.approx(1, rel=0.02)
    assert features.frequencies.std().item() == pytest.approx(2 * math.pi, rel=0.05)
    assert features.phases.min() >= 0
    assert features.phases.max() == pytest.approx(2 * math.pi, rel=0.01)


def test_pixels_are_normalized_over_their_channels_and_zeros_stay() -> None:
    x = 7 * normal(2, 16, 3, 3)
    x[0, :, 0, 0] = 0
    x.requires_grad_()
    y = normalize(x, dims=[1])
    pixels = y.square().mean(1).sqrt().flatten()
    assert pixels[0] == 0
    torch.testing.assert_close(pixels[1:], torch.ones(17), rtol=1e-4, atol=0)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    half = normalize(x.detach().bfloat16(), dims=[1])
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), y.detach(), rtol=2**-7, atol=0)
    assert magnitude(half, [1]).dtype == torch.float32


@pytest.mark.parametrize("layer", [MPLinear(20, 30), MPConv(20, 30, 1), MPConv(20, 30, 3)])
def test_a_layer_keeps_the_magnitude_whatever_the_norm_of_its_weight_is(layer: MPLayer) -> None:
    x = normal(200, 20) if isinstance(layer, MPLinear) else normal(8, 20, 24, 24)
    y = layer(x)
    assert rms(y) == pytest.approx(1, rel=0.06)
    with torch.no_grad():
        layer.weight.mul_(normal(30).abs().add(0.5).reshape(30, *[1] * (layer.weight.ndim - 1)))
    torch.testing.assert_close(layer(x), y, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(layer(x, 0.5), 0.5 * layer(x))
    assert (layer(x, torch.zeros(1)) == 0).all()


def test_a_layer_is_torchs_with_the_normalized_weight_and_its_gradient_is_orthogonal_to_it() -> None:
    layer, x = MPConv(3, 4, 3).double(), normal(2, 3, 5, 5).double()
    w = layer.weight.detach()
    unit = w / w.flatten(1).norm(dim=1)[:, None, None, None]  # norm 1, so magnitude 1 / sqrt(fan in)
    torch.testing.assert_close(layer(x), F.conv2d(x, unit, padding=1), rtol=2e-4, atol=1e-4)
    layer(x).square().sum().backward()
    assert layer.weight.grad is not None
    along = (layer.weight.grad * w).flatten(1).sum(1) / layer.weight.grad.flatten(1).norm(dim=1)
    assert along.abs().max() < 1e-3 * w.flatten(1).norm(dim=1).max()  # section 2.3, but for epsilon


def test_the_projection_gives_each_output_magnitude_one_unless_the_update_was_left_out() -> None:
    layer = MPConv(3, 4, 3)
    moved = layer.weight.detach() * 3 + 0.1
    layer.weight.data.copy_(moved)
    layer.project(torch.tensor(False))
    assert torch.equal(layer.weight, moved)
    layer.project(torch.tensor(True))
    torch.testing.assert_close(layer.weight.square().mean((1, 2, 3)).sqrt(), torch.ones(4), rtol=2e-4, atol=0)
    torch.testing.assert_close(F.normalize(layer.weight.flatten(1)), F.normalize(moved.flatten(1)))
