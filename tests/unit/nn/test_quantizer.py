"""Finite scalar quantization: its grid, its codes, its gradient and the count of its codes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from pydantic import ValidationError

from diffpipe.nn.codebook import EMAQuantizerConfig
from diffpipe.nn.quantizer import MAX_CODES, FSQConfig, FSQuantizer, usage
from diffpipe.resolution import Resolution
from diffpipe.rng import KeyedRNG
from tests.support.randomized import normal

LEVELS = (8, 5, 3, 2)


def quantizer(levels: tuple[int, ...] = LEVELS) -> FSQuantizer:
    return FSQuantizer(FSQConfig(kind="fsq", levels=levels))


def test_every_code_is_reached_and_has_its_own_point_of_the_grid() -> None:
    grids = [[(i - n // 2) / (n // 2) for i in range(n)] for n in LEVELS]
    points = torch.tensor(list(itertools.product(*grids)))
    codes = torch.arange(math.prod(LEVELS))[None]
    embedded = quantizer().embed(codes, Resolution(1, 240))
    torch.testing.assert_close(embedded[0, :, 0].T.unique(dim=0), points.unique(dim=0))

    z = 2 * normal(1000, 4, 16, 16)
    quantized = quantizer()(z)
    assert quantized.codes.unique().tolist() == list(range(240))
    torch.testing.assert_close(quantizer().embed(quantized.codes, Resolution(16, 16)), quantized.latents.detach())
    assert torch.equal(quantized.commitment, torch.zeros(1000))


def test_a_bounded_value_is_rounded_to_the_nearest_level_and_zero_stays_zero() -> None:
    net = quantizer((5,))
    z = torch.linspace(-4, 4, 101)[:, None, None, None]
    latents = net(z).latents.flatten()
    expected = (torch.tanh(z) * 2 * (1 + 1e-3)).round().flatten() / 2
    torch.testing.assert_close(latents, expected)
    for levels in ((5,), (8,)):
        assert quantizer(levels)(torch.zeros(1, 1, 1, 1)).latents.abs().item() < 1e-6


def test_the_gradient_is_that_of_the_bound() -> None:
    z = normal(2, 4, 3, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(quantizer()(z).latents.sum(), z)
    half = torch.tensor([(n - 1) * 1.001 / 2 for n in LEVELS])[:, None, None]
    shift = torch.tensor(
        [math.atanh(0.5 / h) if n % 2 == 0 else 0 for n, h in zip(LEVELS, half.flatten(), strict=True)]
    )
    scale = half / torch.tensor([n // 2 for n in LEVELS])[:, None, None]
    torch.testing.assert_close(gradient, scale * (1 - torch.tanh(z + shift[:, None, None]) ** 2))


def test_its_codes_are_counted_without_those_of_samples_that_are_not_valid() -> None:
    net, rng = quantizer(), KeyedRNG(0, torch.arange(4))
    quantized = net(normal(4, 4, 5, 5))
    valid = torch.tensor([True, False, True, True])
    counts = net.sums(quantized, valid, rng)["counts"]
    assert torch.equal(counts, torch.bincount(quantized.codes[valid].flatten(), minlength=240).float())
    before = net.counts.clone()
    net.update({"counts": counts}, torch.tensor(False))
    assert torch.equal(net.counts, before)
    net.update({"counts": counts}, torch.tensor(True))
    torch.testing.assert_close(net.counts, 0.99 * before + 0.01 * counts)


@pytest.mark.parametrize(("counts", "perplexity", "used"), [([5.0] * 8, 8, 1), ([1.0, 0.0, 0.0, 0.0], 1, 0.25)])
def test_usage_is_the_perplexity_of_the_counts(counts: list[float], perplexity: float, used: float) -> None:
    found = usage(torch.tensor(counts))
    assert found.perplexity.item() == pytest.approx(perplexity)
    assert found.used.item() == pytest.approx(used)


def test_every_allowed_number_of_levels_has_its_codes_from_first_to_last() -> None:
    ends = torch.tensor([-1e4, 1e4])[:, None, None, None]
    for n in range(2, 1001):
        assert quantizer((n,))(ends).codes.flatten().tolist() == [0, n - 1]


def test_levels_below_two_or_too_many_are_refused() -> None:
    assert FSQConfig(kind="fsq", levels=(2,) * 20).codes == MAX_CODES
    for levels in ([5, 1], [], [0]):
        with pytest.raises(ValidationError):
            FSQConfig.model_validate({"kind": "fsq", "levels": levels})
    for levels in ((1001,), (99999999, 99999999), (3000,) * 8):
        with pytest.raises(ValidationError, match="a channel has at most 1000 values; give smaller levels, and more"):
            FSQConfig(kind="fsq", levels=levels)
    for levels in ((1000, 1000, 2), (1000,) * 5000):
        with pytest.raises(ValidationError, match="their product is above 1048576, the most codes; give smaller"):
            FSQConfig(kind="fsq", levels=levels)
    with pytest.raises(ValidationError, match="less than or equal to 1048576"):
        EMAQuantizerConfig(codes=99999999999)
