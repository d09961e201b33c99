"""TarFlow's blocks as a code: images come back in the bits of the density."""

from __future__ import annotations

import math

import pytest
import torch

from diffpipe.coding.local_bits_back import LocalBitsBack
from diffpipe.coding.message import Message
from diffpipe.nn.tarflow import TarFlow, TarFlowConfig
from diffpipe.resolution import Resolution
from diffpipe.stages.tarflow_coding import TarFlowCoder
from tests.support.randomized import normal, randomized

CODE = LocalBitsBack(coarse_bits=7, fine_bits=10)
SMALL = TarFlowConfig(kind="tarflow", patch=2, width=16, blocks=3, layers=2, heads=2)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_come_back_in_the_bits_of_the_density(classes: int, channels: int) -> None:
    torch.manual_seed(0)
    resolution = Resolution(4, 6)
    flow = randomized(TarFlow(SMALL, channels, resolution, classes))
    assert isinstance(flow, TarFlow)
    labels, message = torch.arange(200) % 3, Message(1)
    coder = TarFlowCoder(flow, CODE, channels, resolution)
    with torch.no_grad():
        samples = flow.inverse(normal(200, channels, 4, 6), labels)  # pyright: ignore[reportCallIssue]
        x = torch.round(samples.double() / CODE.grid.step).long()
        coder.encode(message, x, labels)
        z, log_det = flow(CODE.values(x), labels)
        decoder = Message(1, message.words())
        assert torch.equal(coder.decode(decoder, 200, labels), x)
    assert decoder.is_initial()
    nats = 0.5 * (z.square() + math.log(2 * math.pi)).sum((1, 2, 3)) - log_det
    bits = nats.sum().item() / math.log(2) + 17 * x.numel()
    assert (message.bits - message.initial_bits) / x.numel() == pytest.approx(bits / x.numel(), abs=0.01)
