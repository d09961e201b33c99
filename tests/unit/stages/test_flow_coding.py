"""Lossless coding by flows: images come back, in as many bits as the bound of `score`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffpipe.coding.message import Message
from diffpipe.errors import UserError
from diffpipe.evaluation.compression import group_sizes
from diffpipe.rng import KeyedRNG
from diffpipe.stages.flow import FlowStage
from tests.support.randomized import randomized
from tests.support.stage_cases import CASES, SHAPE, real_batch

N = 300


def flow(case: str, *words: str) -> tuple[FlowStage, dict[str, nn.Module]]:
    """A stage, and networks that start from data and are then moved off their start."""
    stage = CASES[case].experiment(*words).stage.build(SHAPE, {})
    assert isinstance(stage, FlowStage)
    torch.manual_seed(0)
    nets, batch = stage.networks(), real_batch(N)
    stage.start(nets, batch, KeyedRNG(0, batch.positions))
    return stage, {name: randomized(net, std=0.05) for name, net in nets.items()}


@pytest.mark.parametrize("conditional", ["true", "false"])
@pytest.mark.parametrize("case", ["flow", "tarflow"])
def test_images_come_back_in_the_bits_of_the_bound(case: str, conditional: str) -> None:
    stage, nets = flow(case, f"stage.conditional={conditional}")
    batch, message = real_batch(N), Message(2)
    labels = batch.labels if stage.classes else None
    with torch.no_grad():
        coder = stage.image_coder(nets)
        coder.encode(message, batch.images, labels)
        score = stage.score(nets, batch, KeyedRNG(0, batch.positions)).per_sample
        decoder = Message(2, message.words())
        assert torch.equal(coder.decode(decoder, N, labels), batch.images)
    assert decoder.is_initial()
    bits = (message.bits - message.initial_bits) / batch.images.numel()
    assert bits == pytest.approx(score.mean().item(), rel=0.005)


@pytest.mark.parametrize("case", ["flow", "tarflow"])
def test_only_the_first_image_takes_initial_bits(case: str) -> None:
    """Groups of the sizes that compression gives them, one after the other."""
    stage, nets = flow(case)
    images, labels, message, initial = real_batch(30).images, real_batch(30).labels, Message(2), []
    assert labels is not None
    with torch.no_grad():
        coder = stage.image_coder(nets)
        sizes = group_sizes(30, 32, coder.images_before)
        assert max(sizes) > 1
        for x, y in zip(images.split(sizes), labels.split(sizes), strict=True):
            coder.encode(message, x, y)
            initial.append(message.initial_bits / images[0].numel())
        assert 8 < initial[0] < 24
        assert initial[-1] < initial[0] + 1
        decoder = Message(2, message.words())
        for x, y in reversed([*zip(images.split(sizes), labels.split(sizes), strict=True)]):
            assert torch.equal(coder.decode(decoder, len(x), y), x)
    assert decoder.is_initial()


def test_black_and_white_pixels_come_back() -> None:
    stage, nets = flow("flow", "stage.conditional=false")
    images = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 1, 8, 8)
    message = Message()
    with torch.no_grad():
        stage.image_coder(nets).encode(message, images, None)
        assert torch.equal(stage.image_coder(nets).decode(message, 2, None), images)


def test_networks_that_are_not_finite_are_refused() -> None:
    stage, nets = flow("flow", "stage.conditional=false")
    for parameter in nets["flow"].parameters():
        nn.init.constant_(parameter, torch.nan)
    with torch.no_grad(), pytest.raises(UserError, match="distributions are not finite"):
        stage.image_coder(nets).encode(Message(), real_batch(2).images, None)


@pytest.mark.parametrize("noise", ["{kind: variational, steps: 1, hidden: 4}", "{kind: gaussian}"])
def test_other_noise_than_uniform_has_no_code(noise: str) -> None:
    stage = CASES["flow"].experiment(f"stage.dequantization={noise}").stage.build(SHAPE, {})
    assert isinstance(stage, FlowStage)
    with pytest.raises(UserError, match=r"has no code of images.*give a flow that was trained with uniform"):
        stage.image_coder(stage.networks())
