"""The perceptual distance and the patch discriminator's losses, by hand and in the VAE's loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, ImageShape
from diffpipe.resolution import square
from diffpipe.rng import KeyedRNG
from diffpipe.stages.perceptual import patch_discriminator_loss, patch_generator_loss, perceptual_distance
from diffpipe.stages.vae import VAE, VAEConfig
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.loop import Trainer
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.runtime import Runtime

SHAPE = ImageShape(channels=1, resolution=square(8))
NETWORK = {"channels": 8, "channel_mult": (1, 2), "groups": 4, "latent_channels": 3}
PERCEPTUAL = {"weight": 0.7}
PATCH = {"weight": 0.3, "start": 2, "network": {"channels": 4, "channel_mult": (1, 2)}}


class Maps(nn.Module):
    """A frozen feature network of two layers."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 9, 3, stride=2)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        h = F.softplus(self.first(x))
        return [h, F.softplus(self.second(h))]


def build(features: Maps | None = None, shape: ImageShape = SHAPE, **changes: Any) -> VAE:
    tree = {"kind": "vae", "network": NETWORK, "perceptual": PERCEPTUAL, "patch": PATCH, **changes}
    return VAEConfig.model_validate(tree).build(shape, {"features": features or Maps()})


def batch(positions: range = range(6)) -> Batch:
    p = torch.tensor(positions)
    images = (p[:, None, None, None] * 37 + torch.arange(64).reshape(8, 8) * (p[:, None, None, None] % 5 + 1)) % 256
    return Batch(images.to(torch.uint8), None, p, [str(i) for i in positions])


def random_networks(stage: VAE) -> dict[str, nn.Module]:
    """With no layer at zero, where some begin."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = stage.networks()
        for net in nets.values():
            for p in net.parameters():
                nn.init.normal_(p, std=0.1)
    return nets


def phase(stage: VAE, name: str) -> Any:
    return next(phase for phase in stage.phases() if phase.name == name)


def by_hand(features: Maps, x: Tensor, y: Tensor) -> Tensor:
    """Zhang et al. 2018, eq. 1, with weights of one, in float64: a mean over layers instead of their sum."""
    layers = []
    for a, b in zip(features.double()(x.double()), features.double()(y.double()), strict=True):
        apart = F.normalize(a, dim=1) - F.normalize(b, dim=1)
        layers.append((apart**2).sum(1).mean((1, 2)))
    features.float()
    return sum(layers) / len(layers)  # pyright: ignore[reportReturnType]


def test_the_perceptual_distance_is_the_formulas_and_zero_for_equal_images() -> None:
    features, generator = Maps(), torch.Generator().manual_seed(0)
    x, y = (torch.rand(5, 3, 12, 12, generator=generator) * 2 - 1 for _ in range(2))
    assert torch.equal(perceptual_distance(features, x, x), torch.zeros(5))
    torch.testing.assert_close(perceptual_distance(features, x, y).double(), by_hand(features, x, y), rtol=1e-4, atol=0)
    gray = perceptual_distance(features, x[:, :1], y[:, :1])
    rgb = [t[:, :1].expand(-1, 3, -1, -1) for t in (x, y)]
    torch.testing.assert_close(gray, perceptual_distance(features, *rgb))


def test_its_gradient_reaches_the_reconstruction_alone_and_is_finite_where_features_vanish() -> None:
    x, y = torch.rand(2, 3, 8, 8).requires_grad_(), torch.rand(2, 3, 8, 8).requires_grad_()
    perceptual_distance(lambda images: [F.relu(images - 0.5)], x, y).sum().backward()
    assert x.grad is None
    assert y.grad is not None
    assert y.grad.isfinite().all()
    assert y.grad.abs().max() > 0


def test_the_patches_losses_are_hinges_averaged_over_places() -> None:
    real, fake = torch.rand(3, 1, 4, 4), torch.rand(3, 1, 4, 4) - 0.5

    def discriminator(images: Tensor) -> Tensor:
        return 3 * images[:, 0, ::2, ::2]

    losses, means = patch_discriminator_loss(discriminator, real, fake)
    at_real, at_fake = discriminator(real), discriminator(fake)
    expected = (1 - at_real).clamp(min=0).mean((1, 2)) + (1 + at_fake).clamp(min=0).mean((1, 2))
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(means["real"], at_real.mean((1, 2)))
    torch.testing.assert_close(means["fake"], at_fake.mean((1, 2)))
    torch.testing.assert_close(patch_generator_loss(discriminator, fake), -at_fake.mean((1, 2)))


def test_the_stages_loss_is_the_bound_and_both_terms_at_their_weights() -> None:
    features = Maps()
    stage, plain, some = build(features), build(perceptual=None, patch=None), batch()
    nets, rng = random_networks(stage), KeyedRNG(3, some.positions)
    bound = plain.loss(plain.phases()[0], nets, some, rng).per_sample
    x = some.images / 127.5 - 1
    q = stage.encode(nets, some.images)
    z = q.mean + torch.exp(q.log_variance / 2) * rng.normal("posterior", stage.latent_shape)
    shown = stage.decode(nets, z).mean
    distance = by_hand(features, *(t.expand(-1, 3, -1, -1) for t in (x, shown)))
    before = stage.loss(phase(stage, "bound"), nets, some, rng)
    torch.testing.assert_close(before.per_sample.double(), bound + 0.7 * distance, rtol=1e-5, atol=1e-5)
    after = stage.loss(phase(stage, "adversarial"), nets, some, rng)
    fooled = -nets["discriminator"](shown).mean((1, 2))
    torch.testing.assert_close(after.per_sample, before.per_sample + 0.3 * fooled)


def test_each_phase_moves_its_own_networks_and_the_features_never() -> None:
    features = Maps()
    stage, some = build(features), batch()
    for name, moved in (("bound", {"encoder", "decoder"}), ("discriminator", {"discriminator"})):
        nets = random_networks(stage)
        loss = stage.loss(phase(stage, name), nets, some, KeyedRNG(0, some.positions))
        loss.per_sample.sum().backward()
        for key, net in nets.items():
            for p in net.parameters():
                assert (p.grad is not None) == (key in moved)
    nets = random_networks(stage)
    nets["discriminator"].requires_grad_(False)
    stage.loss(phase(stage, "adversarial"), nets, some, KeyedRNG(0, some.positions)).per_sample.sum().backward()
    plain = build(perceptual=None, patch=None)
    gradients = [p.grad for p in nets["decoder"].parameters() if p.grad is not None]
    again = random_networks(stage)
    plain.loss(plain.phases()[0], again, some, KeyedRNG(0, some.positions)).per_sample.sum().backward()
    others = [p.grad for p in again["decoder"].parameters() if p.grad is not None]
    assert len(gradients) == len(others) > 0
    assert not any(torch.allclose(a, b) for a, b in zip(gradients, others, strict=True))
    assert all(p.grad is None for p in features.parameters())


def test_the_discriminator_takes_part_from_its_first_step_on() -> None:
    stage = build()
    due = [[phase.name for phase in stage.phases() if phase.due(step)] for step in range(4)]
    assert due == [["bound"], ["bound"], ["discriminator", "adversarial"], ["discriminator", "adversarial"]]
    assert [phase.name for phase in build(patch=None).phases()] == ["bound"]


def trainer(runtime: Runtime, steps: int = 5) -> Trainer:
    config = TrainConfig(steps=steps, log_every=1)
    optimizer = OptimizerConfig(lr=0.01, warmup=0)
    return Trainer(build(), runtime, config, optimizer, EMAConfig(), seed=0, batch_size=6)


def step(some: Trainer) -> None:
    some.train_step([batch(range(6 * some.step, 6 * some.step + 6))])


@pytest.mark.parametrize("killed_after", [1, 3], ids=["before the discriminator", "after it began"])
def test_it_resumes_bit_for_bit(killed_after: int) -> None:
    with Runtime.start("fp32", "cpu") as runtime:
        whole, first, second = (trainer(runtime) for _ in range(3))
        assert {tuple(key) for key in whole.optimizers} == {("encoder", "decoder"), ("discriminator",)}
        for _ in range(5):
            step(whole)
        for _ in range(killed_after):
            step(first)
        state = second.state()
        for name, tensor in first.state().items():
            state[name].copy_(tensor)
        second.step = first.step
        for _ in range(5 - killed_after):
            step(second)
        for name, tensor in whole.state().items():
            assert torch.equal(second.state()[name], tensor), name


def test_what_is_logged_names_the_phase_and_the_terms() -> None:
    with Runtime.start("fp32", "cpu") as runtime:
        some = trainer(runtime)
        logged = []
        for _ in range(3):
            step(some)
            logged.append(some.log_values())
    assert {"bound/loss", "bound/perceptual"} <= logged[0].keys()
    assert not any(key.startswith(("adversarial", "discriminator")) for key in logged[0])
    assert {"adversarial/patch_generator", "discriminator/real", "discriminator/fake"} <= logged[2].keys()
    assert not any(key.startswith("bound") for key in logged[2])
    assert math.isfinite(logged[2]["loss"])


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"gray or RGB images, and data\.channels is 2"):
        build(shape=ImageShape(2, square(8)))
    with pytest.raises(UserError, match=r"cannot be halved 4 times for stage\.patch\.network\.channel_mult"):
        build(patch=PATCH | {"network": {"channels": 4, "channel_mult": (1, 1, 1, 1, 1)}})
