"""Ways between latents and between noises: arcs against closed forms, and rows whose ends are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from diffpipe.evaluation.image_sources import GeneratedImages
from diffpipe.evaluation.interpolation import InterpolatedRNG, between_noises, spherical, straight
from diffpipe.interfaces import ImageShape, Stage
from diffpipe.resolution import square
from diffpipe.rng import KeyedRNG
from diffpipe.stages.gan import GANConfig
from diffpipe.train.runtime import Runtime


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def test_an_arc_turns_evenly_from_one_end_to_the_other() -> None:
    a, b = torch.tensor([[3.0, 0, 0]]).expand(7, 3), torch.tensor([[0, 3.0, 0]]).expand(7, 3)
    t = torch.linspace(0, 1, 7)
    angle = t * math.pi / 2
    expected = 3 * torch.stack([angle.cos(), angle.sin(), torch.zeros(7)], dim=1)
    torch.testing.assert_close(spherical(a, b, t), expected, rtol=0, atol=1e-6)


def test_an_arc_between_normal_latents_keeps_their_length_and_a_line_does_not() -> None:
    a, b = normal(50, 4, 8, 8), normal(50, 4, 8, 8).flip(0)
    middle = torch.full((50,), 0.5)
    length = (a.flatten(1).norm(dim=1) + b.flatten(1).norm(dim=1)) / 2
    arc, line = (way(a, b, middle).flatten(1).norm(dim=1) / length for way in (spherical, straight))
    assert (arc - 1).abs().max() < 0.15
    assert (arc.mean() - 1).abs() < 0.01
    assert abs(line.mean() - math.sqrt(0.5)) < 0.02


@pytest.mark.parametrize("way", [spherical, straight])
def test_ways_begin_and_end_at_their_ends(way: object) -> None:
    assert callable(way)
    a, b = normal(5, 2, 3), 2 * normal(5, 2, 3).flip(0)
    torch.testing.assert_close(way(a, b, torch.zeros(5)), a, rtol=0, atol=1e-12)
    torch.testing.assert_close(way(a, b, torch.ones(5)), b, rtol=0, atol=1e-12)


def test_where_there_is_no_arc_the_way_is_the_line() -> None:
    a = normal(4, 6)
    ends, others = torch.cat([a, a, a]), torch.cat([a, 2 * a, -a])
    t = torch.full((12,), 0.25)
    torch.testing.assert_close(spherical(ends, others, t), 0.75 * ends + 0.25 * others, rtol=0, atol=1e-12)


def test_noise_between_two_positions_is_normal_and_theirs_at_the_ends() -> None:
    first, last = torch.arange(200), torch.arange(200) + 1000
    for t, position in ((0.0, first), (1.0, last)):
        found = InterpolatedRNG(7, first, last, torch.full((200,), t)).normal("latent", (64,))
        torch.testing.assert_close(found, KeyedRNG(7, position).normal("latent", (64,)), rtol=0, atol=1e-6)
    middle = InterpolatedRNG(7, first, last, torch.full((200,), 0.5)).normal("latent", (64,))
    assert middle.mean().abs() < 4 / math.sqrt(middle.numel())
    # the arc's length is the mean of the two, not that of a fresh draw, but the numbers' variance is still 1
    assert abs(float(middle.square().mean()) - 1) < 0.03
    assert torch.equal(
        InterpolatedRNG(7, first, last, torch.full((200,), 0.5)).bits("x", 3), KeyedRNG(7, first).bits("x", 3)
    )


@pytest.mark.parametrize("label", [None, 1])
def test_rows_go_from_one_sample_to_another_of_its_class(label: int | None) -> None:
    tree = {"kind": "gan", "conditional": True, "generator": {"channels": 8, "channel_mult": (1, 2), "latent": 6}}
    shape = ImageShape(channels=1, resolution=square(8), classes=3)
    stage: Stage = GANConfig.model_validate(tree | {"discriminator": {"channels": 8, "channel_mult": (1, 2)}}).build(
        shape
    )
    torch.manual_seed(0)
    nets = {name: net.eval() for name, net in stage.networks().items()}
    with Runtime.start("fp32", "cpu") as runtime:
        source = GeneratedImages(stage, nets, shape, runtime, n=4, seed=5, label=label)
        rows = between_noises(source, torch.linspace(0, 1, 5, dtype=torch.float64))
        samples = source.images(range(10)).float()
    assert rows.shape == (4, 5, 1, 8, 8)
    assert (rows[:, 0].float() - samples[:4]).abs().max() <= 1
    assert (rows[:, -1].float() - samples[6:]).abs().max() <= 1  # 4 rows of 3 classes: the next multiple of 3 away
    assert len(np.unique(rows.flatten(1).numpy(), axis=0)) == 4
    steps = (rows[:, 1:].float() - rows[:, :-1].float()).abs().mean((1, 2, 3, 4))
    assert (steps > 0).all()
