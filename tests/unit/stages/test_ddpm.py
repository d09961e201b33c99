"""The DDPM stage: its loss, its labels, and what it generates."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, ImageShape
from diffpipe.rng import KeyedRNG
from diffpipe.stages.ddpm import DDPMConfig

UNET = {"channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention": (), "groups": 4, "dropout": 0.0}
SHAPE = ImageShape(channels=1, resolution=8, classes=4)


def config(**changes: object) -> DDPMConfig:
    return DDPMConfig.model_validate({"kind": "ddpm", "network": UNET, **changes})


def batch(n: int = 16) -> Batch:
    images = torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Batch(images, torch.arange(n) % 4, torch.arange(n), [str(i) for i in range(n)])


class Recorder(nn.Module):
    """A network that predicts zero and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        self.asked.append((x, t, labels))
        return torch.zeros_like(x) if labels is None else labels[:, None, None, None] * torch.ones_like(x) * 0.1


def test_the_loss_of_predicting_zero_is_the_mean_square_of_the_noise() -> None:
    stage = config().build(SHAPE)
    rng = KeyedRNG(7, torch.arange(16))
    loss = stage.loss(stage.phases()[0], {"denoiser": Recorder()}, batch(), rng)
    expected = rng.normal("noise", (1, 8, 8)).square().mean((1, 2, 3))
    torch.testing.assert_close(loss.per_sample, expected)


def test_labels_are_hidden_at_the_rate_asked_for_and_by_position() -> None:
    stage = config(conditional=True, label_dropout=0.3).build(SHAPE)
    net = Recorder()
    n = 4000
    stage.loss(stage.phases()[0], {"denoiser": net}, batch(n), KeyedRNG(0, torch.arange(n)))
    labels = net.asked[0][2]
    assert labels is not None
    hidden = labels == 4
    assert hidden.float().mean() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(labels[~hidden], (torch.arange(n) % 4)[~hidden])
    part, few = Recorder(), slice(1000, 1010)
    whole = batch(n)
    assert whole.labels is not None
    some = Batch(whole.images[few], whole.labels[few], whole.positions[few], whole.keys[few])
    stage.loss(stage.phases()[0], {"denoiser": part}, some, KeyedRNG(0, some.positions))
    assert part.asked[0][2] is not None
    assert torch.equal(part.asked[0][2], labels[few])


def test_guidance_is_the_extrapolation_from_unconditional_to_conditional() -> None:
    # The recorder predicts 0.1 x label, so eps is 0.4 unguided with the empty label, and 0.4 + w (0.1 y - 0.4) guided.
    sampler = {"steps": 1, "clip": False}
    labels = torch.tensor([0, 1, 2])
    plain = config(conditional=True, sampler=sampler).build(SHAPE)
    guided = config(conditional=True, sampler=sampler | {"guidance": 3.0}).build(SHAPE)
    for stage, weight in ((plain, 1.0), (guided, 3.0)):
        predicted = stage._predict(Recorder(), torch.zeros(3, 1, 8, 8), torch.tensor([5, 5, 5]), labels)
        expected = 0.4 + weight * (0.1 * labels - 0.4)
        torch.testing.assert_close(predicted[:, 0, 0, 0], expected)


def test_an_image_depends_on_its_index_alone() -> None:
    stage = config(sampler={"steps": 3, "kind": "ancestral"}).build(SHAPE)
    torch.manual_seed(0)
    nets = {name: net.eval() for name, net in stage.networks().items()}
    for p in nets["denoiser"].parameters():
        nn.init.normal_(p, std=0.05)
    together = stage.generate(nets, KeyedRNG(3, torch.arange(5)), None)
    assert together.shape == (5, 1, 8, 8)
    assert together.dtype == torch.uint8
    apart = torch.cat([stage.generate(nets, KeyedRNG(3, torch.tensor([i])), None) for i in range(5)])
    assert (together.int() - apart.int()).abs().max() <= 1  # a batch of another size rounds differently
    assert not torch.equal(together[0], together[1])


def test_labels_and_guidance_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match=r"stage\.conditional needs labels.*data\.labels=true"):
        config(conditional=True).build(ImageShape(1, 8))
    with pytest.raises(UserError, match=r"stage\.sampler\.guidance needs labels"):
        config(sampler={"guidance": 2.0}).build(SHAPE)
    with pytest.raises(UserError, match=r"the sampler's steps are 5000"):
        config(sampler={"steps": 5000}).build(SHAPE)
