"""Glow's layers as codes: each takes the bits of its log-determinant, and a linear flow those of a Gaussian."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from diffpipe.coding.local_bits_back import LocalBitsBack
from diffpipe.coding.message import Message
from diffpipe.nn.flow import ActNorm, Coupling, InvertibleConv
from diffpipe.nn.glow import Glow, GlowConfig
from diffpipe.resolution import Resolution
from diffpipe.stages.glow_coding import GlowCoder, decode_layer, encode_layer
from tests.support.randomized import normal, randomized

CODE = LocalBitsBack(coarse_bits=7, fine_bits=10)


def places(x: Tensor) -> Tensor:
    """Numbers on the grid."""
    return torch.round(x.double() / CODE.grid.step).long()


def layers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"actnorm": ActNorm(6), "convolution": InvertibleConv(6), "coupling": Coupling(6, 8, c_context=3)}


@pytest.mark.parametrize("name", layers())
def test_a_layer_takes_minus_its_log_determinant_and_comes_back(name: str) -> None:
    layer = randomized(layers()[name], std=0.3)
    x, context, message = places(normal(20, 6, 16, 16)), normal(20, 3, 1, 1), Message(1)
    with torch.no_grad():
        z = encode_layer(CODE, message, layer, x, context, stream=1)
        expected, log_det = layer(CODE.values(x), context)
        torch.testing.assert_close(CODE.values(z), expected, rtol=0, atol=300 * CODE.grid.step)
        bits = -log_det.sum().item() / math.log(2)
        assert abs(bits) > 0.01 * x.numel()
        assert message.bits - message.initial_bits == pytest.approx(bits, abs=3e-3 * x.numel())
        decoder = Message(1, message.words())
        assert torch.equal(decode_layer(CODE, decoder, layer, z, context, stream=1), x)
    assert decoder.is_initial()


def linear_flow() -> Glow:
    """Its couplings and its prior are the identity: the paper's layers before the first one's start."""
    torch.manual_seed(0)
    flow = Glow(GlowConfig(kind="glow", levels=1, steps=3, hidden=4), 1, Resolution(4, 6))
    for layer in flow.modules():
        if isinstance(layer, (ActNorm, InvertibleConv)):
            randomized(layer, std=0.2)
    return flow


def test_a_linear_flow_takes_the_bits_of_its_gaussian() -> None:
    """The density of 2 x 2 patches, N(-A^-1 b, (A^T A)^-1) for z = A x + b, beside what is pushed."""
    flow, x = linear_flow(), places(0.8 * normal(400, 1, 4, 6))
    coder, message = GlowCoder(flow, CODE, Resolution(4, 6)), Message(1)
    with torch.no_grad():
        coder.encode(message, x, None)
        basis = torch.cat([torch.zeros(1, 4), torch.eye(4)])
        patches = basis.reshape(5, 1, 2, 2).repeat(1, 1, 2, 3)
        images = flow(patches)[0][:, :, :2, :2].reshape(5, 4).double()
    b, a = images[0], (images[1:] - images[0]).T
    covariance = torch.linalg.inv(a.T @ a)
    gaussian = torch.distributions.MultivariateNormal(-torch.linalg.solve(a, b), covariance)
    values = CODE.values(x).double().reshape(400, 2, 2, 3, 2).permute(0, 1, 3, 2, 4).reshape(-1, 4)
    bits = -gaussian.log_prob(values).sum().item() / math.log(2) + 17 * x.numel()
    assert (message.bits - message.initial_bits) / x.numel() == pytest.approx(bits / x.numel(), abs=5e-3)
    decoder = Message(1, message.words())
    with torch.no_grad():
        assert torch.equal(coder.decode(decoder, 400, None), x)
    assert decoder.is_initial()


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_level_comes_back(levels: int, channels: int) -> None:
    torch.manual_seed(0)
    resolution = Resolution(8, 16)
    flow = randomized(Glow(GlowConfig(kind="glow", levels=levels, steps=2, hidden=8), channels, resolution, 3))
    assert isinstance(flow, Glow)
    x, labels, message = places(normal(3, channels, 8, 16)), torch.tensor([0, 2, 1]), Message(1)
    coder = GlowCoder(flow, CODE, resolution)
    with torch.no_grad():
        coder.encode(message, x, labels)
        decoder = Message(1, message.words())
        assert torch.equal(coder.decode(decoder, 3, labels), x)
    assert decoder.is_initial()
