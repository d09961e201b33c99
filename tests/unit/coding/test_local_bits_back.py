"""Local bits-back coding: numbers come back, in the bits of the log-determinant and of the normal density."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffpipe.coding.local_bits_back import LocalBitsBack, decode_shear, encode_shear
from diffpipe.coding.message import Message
from tests.support.randomized import normal

CODE = LocalBitsBack(coarse_bits=7, fine_bits=10)
N = 40_000


def places(x: Tensor) -> Tensor:
    """Numbers on the grid."""
    return torch.round(x.double() / CODE.grid.step).long()


@pytest.mark.parametrize("scale", [1.0, 7.4, 0.135, -2.0, 1 / 300])
def test_an_affine_map_takes_minus_its_log_scale_and_comes_back(scale: float) -> None:
    """Whatever x is: the noise's densities on both sides differ by the scale alone."""
    x, message = places(3 * normal(N // 100, 100) - 20), Message(1)
    factor, shift = torch.tensor([scale], dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)
    z = CODE.encode_affine(message, x, factor, shift, stream=1)
    assert (message.bits - message.initial_bits) / N == pytest.approx(-math.log2(abs(scale)), abs=2e-3)
    error = CODE.values(z).double() - (scale * CODE.values(x).double() + 0.3)
    assert error.mean().item() == pytest.approx(0, abs=0.1 * max(1, abs(scale)) * CODE.grid.step)
    assert error.std().item() == pytest.approx(2 * max(1, abs(scale)) * CODE.grid.step, rel=0.03)
    decoder = Message(1, message.words())
    assert torch.equal(CODE.decode_affine(decoder, z, factor, shift, stream=1), x)
    assert decoder.is_initial()


def test_each_number_has_its_own_scale() -> None:
    x, message = places(normal(4, 10, 1000)), Message(1)
    scale, shift = (normal(4, 1, 1000) / 2).double().exp(), normal(10, 1000).double()
    z = CODE.encode_affine(message, x, scale, shift, stream=1)
    bits = -scale.log2().expand(x.shape).sum().item()
    assert message.bits - message.initial_bits == pytest.approx(bits, abs=2e-3 * N)
    decoder = Message(1, message.words())
    assert torch.equal(CODE.decode_affine(decoder, z, scale, shift, stream=1), x)
    assert decoder.is_initial()


@pytest.mark.parametrize("std", [0.14, 1.0, 7.0])
def test_latents_take_the_bits_of_their_density(std: float) -> None:
    z, message = places(std * normal(N) + 0.7), Message(1)
    mean, deviation = torch.full((N,), 0.7, dtype=torch.float64), torch.full((N,), std, dtype=torch.float64)
    CODE.push_normal(message, z, mean, deviation)
    density = torch.distributions.Normal(mean, deviation).log_prob(CODE.values(z)).mean().item() / math.log(2)
    assert message.bits / N == pytest.approx(17 - density, abs=3e-3)
    assert torch.equal(CODE.pop_normal(Message(1, message.words()), mean, deviation), z)


@pytest.mark.parametrize("diagonal", [-1, 1])
def test_a_shear_is_the_matrix_product_rounded_and_comes_back(diagonal: int) -> None:
    matrix = normal(6, 6).double()
    strict = matrix.tril(-1) if diagonal < 0 else matrix.triu(1)
    x = places(5 * normal(3, 6, 4, 5))
    y = encode_shear(x, strict)
    product = torch.einsum("dc,bchw->bdhw", torch.eye(6) + strict, x.double())
    assert (y - product).abs().max() < 0.6
    assert torch.equal(decode_shear(y, strict), x)
    assert torch.equal(decode_shear(encode_shear(x, torch.zeros(6, 6).double()), torch.zeros(6, 6).double()), x)


def test_numbers_are_contiguous_whatever_they_are_cut_from() -> None:
    k = places(normal(2, 4, 6, 6))
    assert CODE.values(k.permute(0, 2, 3, 1)[:, ::2]).is_contiguous()
    assert CODE.values(k[:, 1:3]).is_contiguous()
