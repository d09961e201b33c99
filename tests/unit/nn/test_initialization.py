"""The initial weights of the UNet: the variances of Ho et al. 2020, layer by layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffpipe.nn.blocks import ResBlock, SelfAttention
from diffpipe.nn.unet import UNet, UNetConfig
from diffpipe.resolution import square

CONFIG = UNetConfig(channels=64, channel_mult=(1, 2), blocks=1, attention=(4,))


@pytest.fixture
def net() -> UNet:
    torch.manual_seed(0)
    return UNet(CONFIG, 3, square(8), classes=10)


def test_weights_have_the_variance_of_the_mean_fan_and_biases_are_zero(net: UNet) -> None:
    zeros = {net.out, *(m.conv2 for m in net.modules() if isinstance(m, ResBlock))}
    zeros |= {m.out for m in net.modules() if isinstance(m, SelfAttention)}
    for module in net.modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        assert module.bias is not None
        assert torch.count_nonzero(module.bias) == 0
        if module in zeros:
            assert torch.count_nonzero(module.weight) == 0
            continue
        # The projections to queries, keys and values are three layers.
        for weight in module.weight.chunk(3 if module.weight.shape[0] == 3 * module.weight.shape[1] else 1):
            places = weight[0, 0].numel()
            variance = 2 / (places * (weight.shape[0] + weight.shape[1]))
            assert weight.var().item() == pytest.approx(variance, rel=0.1)
            assert weight.abs().max().item() == pytest.approx((3 * variance) ** 0.5, rel=0.02)


def test_it_draws_without_a_device_too(net: UNet) -> None:
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in UNet(CONFIG, 3, square(8), classes=10).named_parameters()}
    assert shapes == {name: p.shape for name, p in net.named_parameters()}
