"""EDM2's UNet: the paper's size, magnitudes through the network, its block by hand, and weights of unit norm."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffpipe.errors import UserError
from diffpipe.interfaces import Projects
from diffpipe.nn.edm2 import EDM2Block, EDM2Config, EDM2UNet
from diffpipe.nn.magnitude_preserving import MPLayer
from diffpipe.resolution import square
from diffpipe.train.optimizer import Optimizer, OptimizerConfig
from tests.support.randomized import normal, randomized


def config(**changes: Any) -> EDM2Config:
    tiny = {"channels": 16, "channel_mult": (1, 2), "blocks": 1, "attention": (4,), "head_channels": 8}
    return EDM2Config.model_validate({"kind": "edm2", **tiny, **changes})


def build(**changes: Any) -> EDM2UNet:
    return config(**changes).build(1, square(8), classes=3)


@pytest.mark.parametrize(("channels", "millions"), [(128, 125), (192, 280), (256, 498), (320, 777)])
def test_the_sizes_are_those_of_the_paper(channels: int, millions: float) -> None:
    # Karras et al. 2024, table 2: EDM2-XS, S, M and L, with 64x64 latents of 4 channels and 1,000 classes.
    with torch.device("meta"):
        net = EDM2Config(kind="edm2", channels=channels).build(4, square(64), classes=1000)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(millions * 1e6, rel=4e-3)


def test_a_new_network_predicts_zero_and_its_blocks_keep_the_magnitude_of_their_input() -> None:
    magnitudes: list[float] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = config(channels=64, blocks=2, attention=(8,)).build(4, square(16), classes=5)
    for block in net.blocks():
        block.register_forward_hook(lambda _, __, h: magnitudes.append(h.square().mean().sqrt().item()))
    with torch.no_grad():
        out = net(normal(8, 4, 16, 16), torch.linspace(-1.5, 1.1, 8), torch.arange(8) % 5)
    assert (out == 0).all()
    assert len(magnitudes) == 5 + 9
    # Zeros around the image and correlated branches take away a little.
    assert magnitudes == pytest.approx([1.0] * len(magnitudes), abs=0.2)
    with torch.no_grad():
        net.out_gain.fill_(1.0)
        out = net(normal(8, 4, 16, 16), torch.linspace(-1.5, 1.1, 8), torch.arange(8) % 5)
    assert out.square().mean().sqrt().item() == pytest.approx(1.0, abs=0.3)  # of four channels


@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_a_block_is_that_of_figure_21(decoder: bool, resample: Any) -> None:
    block = EDM2Block(config(), 12, 16, 6, decoder=decoder, attends=True, resample=resample)
    randomized(block)
    x, emb = normal(2, 12, 4, 6), normal(2, 6)

    def conv(layer: Any, h: Tensor) -> Tensor:
        rows = layer.weight.flatten(1)
        weight = (rows / rows.norm(dim=1, keepdim=True)).reshape(layer.weight.shape)
        return F.conv2d(h, weight, padding="same")

    def silu(h: Tensor) -> Tensor:
        return h * torch.sigmoid(h) / 0.596

    h = x
    if resample == "up":
        h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
    elif resample == "down":
        h = h.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    if not decoder:
        h = conv(block.skip, h)
        h = h / h.square().mean(1, keepdim=True).sqrt()
    rows = block.emb.weight
    scale = 1 + block.emb_gain * emb @ (rows / rows.norm(dim=1, keepdim=True)).T
    y = conv(block.conv2, silu(conv(block.conv1, silu(h)) * scale[:, :, None, None]))
    if decoder:
        h = conv(block.skip, h)
    h = (0.7 * h + 0.3 * y) / math.sqrt(0.7**2 + 0.3**2)
    heads = conv(block.qkv, h).flatten(2).reshape(2, 2, 8, 3, -1)  # two heads of 8 channels
    q, k, v = (heads / heads.square().mean(2, keepdim=True).sqrt()).unbind(3)
    weights = torch.einsum("bhcq,bhck->bhqk", q, k).div(math.sqrt(8)).softmax(-1)
    attended = torch.einsum("bhqk,bhck->bhcq", weights, v).reshape(h.shape)
    expected = (0.7 * h + 0.3 * conv(block.out, attended)) / math.sqrt(0.7**2 + 0.3**2)
    torch.testing.assert_close(block(x, emb), expected, rtol=2e-3, atol=2e-3)


def test_the_embedding_sums_the_noise_level_and_the_label_and_no_label_is_zero() -> None:
    net, t = build(label_balance=0.4), torch.tensor([-1.0, 0.5])
    assert net.label is not None
    rows = net.noise.weight
    noise = net.fourier(t) @ (rows / rows.norm(dim=1, keepdim=True)).T
    columns = net.label.weight / net.label.weight.square().mean(1, keepdim=True).sqrt()
    label = torch.stack([columns[:, 1], torch.zeros(32)])
    expected = F.silu((0.6 * noise + 0.4 * label) / math.sqrt(0.6**2 + 0.4**2)) / 0.596
    torch.testing.assert_close(net._embed(t, torch.tensor([1, 3])), expected, rtol=1e-3, atol=1e-3)


def test_the_output_depends_on_time_label_and_place_and_each_sample_on_itself_alone() -> None:
    net = randomized(build(), std=0.3)
    x, t, y = normal(3, 1, 8, 8), torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([0, 1, 3])
    out = net(x, t, y)
    assert out.shape == x.shape
    torch.testing.assert_close(net(x[1:2], t[1:2], y[1:2]), out[1:2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(net(x, t + 1, y), out, atol=1e-4)
    assert not torch.allclose(net(x, t, (y + 1) % 3), out, atol=1e-4)
    assert not torch.allclose(net(x.roll(2, 3), t, y), out.roll(2, 3), atol=1e-4)
    assert net(normal(1, 1, 8, 12), t[:1], y[:1]).shape == (1, 1, 8, 12)


def test_every_parameter_gets_a_gradient() -> None:
    net = randomized(build())
    net(normal(4, 1, 8, 8), normal(4), torch.tensor([0, 1, 2, 3])).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_weights_have_unit_norm_after_each_step_and_keep_their_bits_where_it_is_not_finite() -> None:
    net = build()
    assert isinstance(net, Projects)
    optimizer = Optimizer(OptimizerConfig(lr=0.1, warmup=0), {"net": net}, scaled=False)
    x, t, y = normal(4, 1, 8, 8), normal(4), torch.tensor([0, 1, 2, 3])
    layers = [layer for layer in net.modules() if isinstance(layer, MPLayer)]

    def step(factor: float) -> None:
        optimizer.backward((net(x, t, y) - x).square().mean() * factor)
        optimizer.step(0.1)

    before = [layer.weight.detach().clone() for layer in layers]
    for _ in range(3):
        step(1.0)
        for layer in layers:
            magnitudes = layer.weight.detach().flatten(1).square().mean(1).sqrt()
            np.testing.assert_allclose(magnitudes.numpy(), 1.0, atol=2e-4)
    assert all(not torch.equal(a, layer.weight) for a, layer in zip(before, layers, strict=True))
    before = [p.detach().clone() for p in net.parameters()]
    step(math.inf)
    assert all(torch.equal(a, p) for a, p in zip(before, net.parameters(), strict=True))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"head_channels 24 does not divide the width 32 of a level with attention"):
        build(head_channels=24)
    with pytest.raises(
        UserError, match=r"attention names resolutions \[16\] that no level has; the levels are \[8, 4\]"
    ):
        build(attention=(16,))
    with pytest.raises(UserError, match=r"cannot be halved 4 times for stage\.network\.channel_mult"):
        build(channel_mult=(1, 1, 1, 1, 1))
