"""The DDPM stage: its loss, its labels, and what it generates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, ImageShape
from diffpipe.resolution import square
from diffpipe.rng import KeyedRNG
from diffpipe.stages.ddpm_config import DDPMConfig

UNET = {"channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention": (), "groups": 4, "dropout": 0.0}
SHAPE = ImageShape(channels=1, resolution=square(8), classes=4)


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
        config(conditional=True).build(ImageShape(1, square(8)))
    with pytest.raises(UserError, match=r"stage\.sampler\.guidance needs labels"):
        config(sampler={"guidance": 2.0}).build(SHAPE)
    with pytest.raises(UserError, match=r"stage\.sampler\.guidance needs a network that was trained without labels"):
        config(conditional=True, label_dropout=0, sampler={"guidance": 2.0}).build(SHAPE)
    with pytest.raises(UserError, match=r"the sampler's steps are 5000"):
        config(sampler={"steps": 5000}).build(SHAPE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prediction": "flow", "sampler": {"kind": "edm"}}, "starts at a finite sigma.*use heun or dpmpp_2m"),
        ({"prediction": "v", "schedule": {"zero_terminal_snr": True}, "sampler": {"kind": "edm"}}, "use heun or dpm"),
        ({"prediction": "flow", "sampler": {"spacing": "karras"}}, "is not for stage.schedule.kind=flow; use trailing"),
        ({"prediction": "edm", "sampler": {"spacing": "leading"}}, "use trailing, karras or log_snr"),
        ({"prediction": "edm", "schedule": {"sigma_max": 4}}, "make it at least 5, ten times sigma_data"),
    ],
)
def test_samplers_that_the_schedule_cannot_have_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(**settings).build(SHAPE)


PREDICTIONS: list[dict[str, Any]] = [
    {"prediction": "eps"},
    {"prediction": "x0", "weighting": {"kind": "min_snr"}},
    {"prediction": "v", "schedule": {"kind": "cosine", "zero_terminal_snr": True}},
    {"prediction": "edm", "timesteps": {"low_discrepancy": True}},
    {"prediction": "flow", "schedule": {"shift": 3.0}},
    {"prediction": "x0", "schedule": {"kind": "flow"}},
]


@pytest.mark.parametrize("settings", PREDICTIONS)
@pytest.mark.parametrize("kind", ["ddim", "dpmpp_2m", "dpmpp_2m_sde", "euler", "unipc", "ancestral"])
def test_every_prediction_trains_generates_and_is_bounded(settings: dict[str, Any], kind: str) -> None:
    stage = config(**settings, sampler={"steps": 3, "kind": kind, "vlb_steps": 4}).build(SHAPE)
    nets, positions = {"denoiser": Recorder()}, torch.arange(16)
    loss = stage.loss(stage.phases()[0], nets, batch(), KeyedRNG(0, positions))
    assert loss.per_sample.shape == (16,)
    assert loss.per_sample.isfinite().all()
    assert stage.generate(nets, KeyedRNG(0, positions), None).shape == (16, 1, 8, 8)
    assert stage.evaluations() == 3
    score = stage.score(nets, batch(), KeyedRNG(0, positions))
    assert score.per_sample.isfinite().all()


def test_two_evaluations_a_step_are_counted_and_guidance_within_its_interval_alone() -> None:
    def evaluations(**sampler: Any) -> int | None:
        return config(prediction="edm", conditional=True, sampler={"steps": 4, **sampler}).build(SHAPE).evaluations()

    assert evaluations(kind="ddim") == 4
    assert evaluations(kind="heun") == evaluations(kind="edm") == 7
    assert evaluations(kind="ddim", guidance=2.0) == 8
    # The four levels are 80, 9.7, 0.47 and 0.002.
    assert evaluations(kind="ddim", guidance=2.0, guidance_interval=[0.1, 20]) == 6


def test_the_learned_weighting_trains_a_network_of_its_own() -> None:
    stage = config(weighting={"kind": "learned"}).build(SHAPE)
    nets = stage.networks()
    assert set(nets) == {"denoiser", "log_variance"}
    assert stage.phases()[0].trains == ("denoiser", "log_variance")
    loss = stage.loss(stage.phases()[0], nets, batch(), KeyedRNG(0, torch.arange(16)))
    torch.testing.assert_close(loss.per_sample, loss.metrics["mse"])  # u starts at 0
    loss.per_sample.sum().backward()
    assert all(p.grad is not None for p in nets["log_variance"].parameters())
