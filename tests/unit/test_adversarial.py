"""The denoising diffusion GAN: its large steps, the pairs its networks see, and what it generates."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffpipe.contract import ImageShape, UserError
from diffpipe.diffusion.process import posterior, q_sample
from diffpipe.nn.blocks import zero_init
from diffpipe.nn.generator import DenoisingGenerator
from diffpipe.nn.unet import UNet, UNetConfig
from diffpipe.rng import Draws
from diffpipe.stages.adversarial import AdversarialConfig, LargeStepsConfig
from tests.unit.test_gan import batch, part, random_networks, runtime, trainer

__all__ = ["runtime"]

UNET = {"channels": 8, "mults": (1, 2), "blocks": 1, "attention": (), "groups": 4, "dropout": 0.0}
SHAPE = ImageShape(channels=1, resolution=8, classes=3)


def config(**changes: object) -> AdversarialConfig:
    settings = {"unet": UNET, "latent": 4, "discriminator": {"channels": 8, "mults": (1, 2)}, "penalty_every": 2}
    return AdversarialConfig.model_validate({"kind": "adversarial", **settings, **changes})


class Oracle(nn.Module):
    """A generator that knows x_0, and remembers what it was asked."""

    def __init__(self, x0: Tensor) -> None:
        super().__init__()
        self.x0 = x0
        self.asked: list[tuple[Tensor, Tensor]] = []

    def forward(self, x_t: Tensor, t: Tensor, z: Tensor, labels: Tensor | None) -> Tensor:
        self.asked.append((x_t, t))
        return self.x0.expand_as(x_t)


class Spy(nn.Module):
    """A discriminator that finds all alike, and remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, pairs: Tensor, labels: Tensor | None, t: Tensor) -> Tensor:
        x_prev, x_t = pairs.detach().chunk(2, dim=1)
        self.shown.append((x_prev, x_t, t))
        return 0 * pairs.square().sum((1, 2, 3))


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_large_steps_are_the_sde_at_equal_times(steps: int) -> None:
    # The variance-preserving SDE has log alpha_bar(s) = -integral of beta from 0 to s (Song et al. 2021, eq. 33).
    schedule = LargeStepsConfig(steps=steps, beta_min=0.1, beta_max=20.0).build()
    grid = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    integral = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(0.1 + 19.9 * grid, grid)])
    expected = torch.exp(-integral[:: 200_000 // steps][1:])
    torch.testing.assert_close(schedule.alpha_bar(torch.arange(steps)), expected, rtol=1e-6, atol=0)
    assert steps == schedule.T
    torch.testing.assert_close((1 - schedule.betas).log().cumsum(0), schedule.cumulative[1:], rtol=1e-9, atol=1e-9)


def test_with_an_oracle_the_chain_returns_x0_by_way_of_the_forward_marginals() -> None:
    x0 = torch.linspace(-1, 1, 64).reshape(1, 8, 8)
    for steps in (1, 4):
        stage = config(schedule={"steps": steps}).build(SHAPE)
        oracle = Oracle(x0)
        images = stage.generate({"generator": oracle}, Draws(0, torch.arange(3000)), None)
        assert torch.equal(images, stage.codec.decode(x0[None]).expand_as(images))
        assert [int(t[0]) for _, t in oracle.asked] == list(reversed(range(steps)))
        schedule = stage.config.schedule.build()
        for x_t, t in oracle.asked[1:]:  # the first is pure noise, where alpha_bar is all but 0
            signal, noise = schedule.alpha_bar(t[:1]).sqrt(), schedule.one_minus_alpha_bar(t[:1]).sqrt()
            left = (x_t - signal.float()[0] * x0) / noise.float()[0]
            assert abs(float(left.mean())) < 0.01 + 0.01  # 192,000 standard normals, and what x_T lacks of x0
            assert float(left.square().mean()) == pytest.approx(1, abs=0.02)


def test_real_pairs_are_of_the_forward_process_and_fakes_of_the_posterior() -> None:
    stage = config(schedule={"steps": 4}).build(SHAPE)
    n = 4000
    whole = batch(n=n)
    x0 = stage.codec.encode(whole.images)
    spy = Spy()
    nets = {"generator": Oracle(torch.full((1, 8, 8), 0.3)), "discriminator": spy}
    stage.loss(stage.phases()[0], nets, whole, Draws(0, whole.positions))
    x_prev, x_t, t = spy.shown[0]
    assert torch.equal(x_t[:n], x_t[n:])
    assert torch.equal(t[:n], t[n:])
    assert torch.bincount(t[:n]).float().div(n).tolist() == pytest.approx([0.25] * 4, abs=0.03)
    schedule = stage.config.schedule.build()
    for step in range(4):
        rows = t[:n] == step
        of = t[:n][rows]
        # Real: x_{t-1} = sqrt(alpha_bar) x_0 + noise, x_t = sqrt(alpha) x_{t-1} + noise.
        expected = q_sample(schedule, x0[rows], of - 1, torch.zeros_like(x0[rows]))
        assert float((x_prev[:n][rows] - expected).var()) == pytest.approx(
            float(schedule.one_minus_alpha_bar(of[:1] - 1)), rel=0.03, abs=1e-9
        )
        ahead = x_t[:n][rows] - schedule.alpha(of[:1], of[:1] - 1).sqrt().float() * x_prev[:n][rows]
        assert float(ahead.var()) == pytest.approx(float(schedule.betas[step]), rel=0.03)
        # Generated: the posterior at what the generator said, here 0.3.
        mean, variance = posterior(schedule, torch.full_like(x0[rows], 0.3), x_t[:n][rows], of, of - 1)
        assert float((x_prev[n:][rows] - mean).var()) == pytest.approx(float(variance[0]), rel=0.03, abs=1e-9)


def test_the_gradient_penalty_is_at_the_real_x_prev_alone() -> None:
    stage = config(r1=0.7).build(SHAPE)
    nets = random_networks(stage, torch.float32)
    discriminator, whole = nets["discriminator"], batch(n=3)
    shown: list[tuple[Tensor, ...]] = []
    discriminator.register_forward_pre_hook(lambda module, args: shown.append(args))
    loss = stage.loss(stage.phases()[1], nets, whole, Draws(0, whole.positions))
    ((pairs, _, t),) = shown
    assert len(pairs) == 3  # no generated ones are needed

    def one(x_prev: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return discriminator(torch.cat([x_prev, x_t])[None], None, t[None])[0]

    pairs = pairs.detach()
    rows = [torch.func.jacrev(one)(pair[:1], pair[1:], at) for pair, at in zip(pairs, t, strict=True)]
    expected = 0.7 / 2 * torch.stack(rows).square().sum((1, 2, 3))
    torch.testing.assert_close(loss.metrics["penalty"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("game", ["non_saturating", "relativistic"])
def test_losses_do_not_depend_on_how_a_batch_is_split(game: str) -> None:
    stage = config(loss=game, conditional=True).build(SHAPE)
    nets = random_networks(stage, torch.float32)
    whole = batch()
    for phase in stage.phases():
        together = stage.loss(phase, nets, whole, Draws(0, whole.positions)).per_sample
        few = part(whole, slice(3, 8))
        apart = stage.loss(phase, nets, few, Draws(0, few.positions)).per_sample
        torch.testing.assert_close(apart, together[3:], rtol=1e-3, atol=1e-3)


def test_an_image_depends_on_its_index_and_label_alone() -> None:
    stage = config(conditional=True, schedule={"steps": 3}).build(SHAPE)
    nets = {name: net.eval() for name, net in random_networks(stage, torch.float32).items()}
    together = stage.generate(nets, Draws(3, torch.arange(5)), torch.arange(5) % 3)
    assert together.shape == (5, 1, 8, 8)
    assert together.dtype == torch.uint8
    apart = torch.cat([stage.generate(nets, Draws(3, torch.tensor([i])), torch.tensor([i % 3])) for i in range(5)])
    assert (together.int() - apart.int()).abs().max() <= 1  # a batch of another size rounds differently
    assert not torch.equal(together[0], together[3])
    assert not torch.equal(stage.generate(nets, Draws(3, torch.arange(5)), (torch.arange(5) + 1) % 3), together)


def test_each_phase_moves_its_own_network(runtime: Any) -> None:
    t = trainer(runtime, config(conditional=True).build(SHAPE))
    for step in range(3):
        t.train_step([batch(8 * step)])
    state = t.state()
    assert state["optimizer.discriminator.discriminator.stem.weight.step"] == 3 + 2
    assert state["optimizer.generator.generator.stem.weight.step"] == 3
    before = {name: [p.clone() for p in net.parameters()] for name, net in t.nets.items()}
    t._update(t.stage.phases()[2], [batch(24)])
    same = {name: all(map(torch.equal, before[name], net.parameters())) for name, net in t.nets.items()}
    assert same == {"generator": False, "discriminator": True}
    assert math.isfinite(t._log_values()["penalty/penalty"])


def test_a_ddpms_unet_loads_into_the_generator_and_is_what_it_computes_without_a_latent() -> None:
    torch.manual_seed(0)
    settings = UNetConfig.model_validate(UNET)
    unet, generator = UNet(settings, 1, 8, 3), DenoisingGenerator(settings, 4, 1, 8, 3)
    for p in unet.parameters():
        nn.init.normal_(p, std=0.2)
    missing, unexpected = generator.load_state_dict(unet.state_dict(), strict=False)
    assert not unexpected
    assert all(key.startswith("latent.") for key in missing)
    x, t, z, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 3]), torch.randn(2, 4), torch.tensor([0, 2])
    assert not torch.equal(generator(x, t, z, labels), unet(x, t, labels))
    zero_init(generator.latent)
    assert torch.equal(generator(x, t, z, labels), unet(x, t, labels))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"stage\.conditional needs labels.*data\.labels=true"):
        config(conditional=True).build(ImageShape(1, 8))
    with pytest.raises(ValueError, match=r"beta_min is 30\.0, above beta_max 20\.0"):
        config(schedule={"beta_min": 30.0})
    with pytest.raises(ValueError, match="less than or equal to 8"):
        config(schedule={"steps": 9})
