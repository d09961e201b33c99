"""Coding value by value: images come back, in the bits of the exact likelihood."""

from __future__ import annotations

import pytest
import torch

from diffpipe.coding.message import Message
from diffpipe.interfaces import ImageShape
from diffpipe.resolution import square
from diffpipe.rng import KeyedRNG
from diffpipe.stages.autoregressive import AutoregressiveStage
from tests.support.stage_cases import CASES, real_batch


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("case", ["autoregressive", "autoregressive, full"])
def test_images_come_back_in_the_bits_of_the_likelihood(case: str, channels: int) -> None:
    stage = CASES[case].experiment().stage.build(ImageShape(channels, square(8), 10), {})
    assert isinstance(stage, AutoregressiveStage)
    batch = real_batch(60)
    shift = 40 * torch.arange(channels, dtype=torch.uint8)[:, None, None]
    batch = batch._replace(images=batch.images.expand(-1, channels, -1, -1) + shift)  # wraps around
    torch.manual_seed(0)
    nets = {name: net.eval() for name, net in stage.networks().items()}
    labels = batch.labels if stage.classes else None
    with torch.no_grad():
        coder, message = stage.image_coder(nets), Message()
        coder.encode(message, batch.images, labels)
        score = stage.score(nets, batch, KeyedRNG(0, batch.positions)).per_sample
        decoder = Message(words=message.words())
        assert torch.equal(coder.decode(decoder, 60, labels), batch.images)
    assert decoder.is_initial()
    assert message.bits / batch.images.numel() == pytest.approx(score.mean().item(), rel=0.005)
