"""The denoising diffusion GAN: the pairs its networks see, and what it generates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffpipe.dependency import TrainedStage
from diffpipe.diffusion.process import posterior, q_sample
from diffpipe.diffusion.schedule import DiscreteSchedule, DiscreteScheduleConfig
from diffpipe.errors import UserError
from diffpipe.interfaces import ImageShape
from diffpipe.resolution import square
from diffpipe.rng import KeyedRNG
from diffpipe.stages.adversarial import AdversarialConfig, AdversarialDiffusion
from diffpipe.stages.ddpm_config import DDPMConfig
from tests.support.tiny_gans import UNET, batch, random_networks, rows_of, trained_unet, trainer

SHAPE = ImageShape(channels=1, resolution=square(8), classes=3)
LEVELS = DiscreteSchedule.build(DiscreteScheduleConfig(kind="cosine"))


def config(**changes: object) -> AdversarialConfig:
    settings = {"network": UNET, "latent": 4, "loss": "non_saturating", "r2": 0.0, "penalty_every": 2}
    return AdversarialConfig.model_validate({"kind": "adversarial", **settings, **changes})


class Oracle(nn.Module):
    """A generator that knows x_0 and says it by way of the noise; it remembers what it was asked."""

    def __init__(self, x0: Tensor, stage: AdversarialDiffusion) -> None:
        super().__init__()
        self.x0 = x0
        levels = DiscreteSchedule.build(stage.config.levels)
        schedule = stage.config.schedule.build(levels)
        self.alpha_bar = schedule.alpha_bar(torch.arange(schedule.T))
        fine = levels.log_alpha_bar[1:]
        self.levels = [int((fine - level).abs().argmin()) for level in self.alpha_bar.log()]
        self.asked: list[tuple[Tensor, Tensor]] = []

    def forward(self, x_t: Tensor, level: Tensor, z: Tensor, labels: Tensor | None) -> Tensor:
        t = torch.tensor([self.levels.index(int(row)) for row in level])
        self.asked.append((x_t, t))
        a = self.alpha_bar[t][:, None, None, None]
        trust = 1 / (1 + (1 - a) / a / 400)
        return ((x_t - a.sqrt() * self.x0.expand_as(x_t) / trust) / (1 - a).sqrt()).float()


class Spy(nn.Module):
    """A discriminator that finds all alike, and remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, x_prev: Tensor, x_t: Tensor, level: Tensor, labels: Tensor | None) -> Tensor:
        self.shown.append((x_prev.detach(), x_t.detach(), level))
        return 0 * (x_prev + x_t).square().sum((1, 2, 3))


def test_focus_trains_the_last_steps_more_often() -> None:
    # P(t < k) = P(u^timestep_power T < k) = (k / T)^(1 / timestep_power)
    n, stage, spy = 4000, config(timestep_power=2.0).build(SHAPE), Spy()
    nets = {"generator": Oracle(torch.zeros(1, 8, 8), stage), "discriminator": spy}
    whole = batch(n=n)
    stage.loss(stage.phases()[0], nets, whole, KeyedRNG(0, whole.positions))
    levels = [0, *nets["generator"].levels]
    t = torch.tensor([levels.index(int(level)) for level in spy.shown[0][2][:n]])
    expected = torch.tensor([0, 1, 2, 3, 4]).div(4).sqrt().diff()
    assert torch.bincount(t).div(n).tolist() == pytest.approx(expected.tolist(), abs=0.03)


def test_with_an_oracle_the_chain_returns_x0_by_way_of_the_forward_marginals() -> None:
    x0 = torch.linspace(-1, 1, 64).reshape(1, 8, 8)
    for steps in (1, 4):
        stage = config(schedule={"kind": "sde", "steps": steps}).build(SHAPE)
        oracle = Oracle(x0, stage)
        images = stage.generate({"generator": oracle}, KeyedRNG(0, torch.arange(3000)), None)
        expected = stage.codec.decode(x0[None]).expand_as(images)
        assert (images.int() - expected.int()).abs().max() <= 1  # said by way of the noise, in float32
        assert [int(t[0]) for _, t in oracle.asked] == list(reversed(range(steps)))
        schedule = stage.config.schedule.build(LEVELS)
        for x_t, t in oracle.asked[1:]:  # the first is pure noise, where alpha_bar is all but 0
            signal, noise = schedule.alpha_bar(t[:1]).sqrt(), schedule.one_minus_alpha_bar(t[:1]).sqrt()
            left = (x_t - signal.float()[0] * x0) / noise.float()[0]
            assert abs(float(left.mean())) < 0.01 + 0.01  # 192,000 standard normals, and what x_T lacks of x0
            assert float(left.square().mean()) == pytest.approx(1, abs=0.02)


def test_real_pairs_are_of_the_forward_process_and_fakes_of_the_posterior() -> None:
    stage = config(schedule={"kind": "sde", "steps": 4}).build(SHAPE)
    n = 4000
    whole = batch(n=n)
    x0 = stage.codec.encode(whole.images)
    spy = Spy()
    oracle = Oracle(torch.full((1, 8, 8), 0.3), stage)
    nets = {"generator": oracle, "discriminator": spy}
    stage.loss(stage.phases()[0], nets, whole, KeyedRNG(0, whole.positions))
    x_prev, x_t, level = spy.shown[0]
    assert torch.equal(x_t[:n], x_t[n:])
    assert torch.equal(level[:n], level[n:])
    levels = [0, *oracle.levels]  # the discriminator gets the noise level of x_{t-1}, and x_0 has none
    t = torch.tensor([levels.index(int(row)) for row in level])
    assert torch.bincount(t[:n]).float().div(n).tolist() == pytest.approx([0.25] * 4, abs=0.03)
    schedule = stage.config.schedule.build(LEVELS)
    for step in range(4):
        rows = t[:n] == step
        of = t[:n][rows]
        # Real: x_{t-1} = sqrt(alpha_bar) x_0 + noise, x_t = sqrt(alpha) x_{t-1} + noise.
        expected = q_sample(schedule.level(of - 1), x0[rows], torch.zeros_like(x0[rows]))
        assert float((x_prev[:n][rows] - expected).var()) == pytest.approx(
            float(schedule.one_minus_alpha_bar(of[:1] - 1)), rel=0.03, abs=1e-9
        )
        ahead = x_t[:n][rows] - (1 - schedule.betas[step]).sqrt().float() * x_prev[:n][rows]
        assert float(ahead.var()) == pytest.approx(float(schedule.betas[step]), rel=0.03)
        # Generated: the posterior at what the generator said, here 0.3.
        mean, variance = posterior(
            schedule.level(of), schedule.level(of - 1), torch.full_like(x0[rows], 0.3), x_t[:n][rows]
        )
        assert float((x_prev[n:][rows] - mean).var()) == pytest.approx(float(variance[0]), rel=0.03, abs=1e-6)


def test_x0_can_be_compared_beside_its_x_t() -> None:
    stage = config(schedule={"kind": "sde", "steps": 4}, discriminator_input="x_0").build(SHAPE)
    n, spy, oracle = 100, Spy(), Oracle(torch.full((1, 8, 8), 0.3), stage)
    whole = batch(n=n)
    x0 = stage.codec.encode(whole.images)
    stage.loss(stage.phases()[0], {"generator": oracle, "discriminator": spy}, whole, KeyedRNG(0, whole.positions))
    (shown, x_t, level), ((asked, t),) = spy.shown[0], oracle.asked
    assert torch.equal(shown[:n], x0)
    torch.testing.assert_close(shown[n:], torch.full_like(x0, 0.3), atol=1e-3, rtol=0)
    assert torch.equal(x_t[:n], asked)
    assert torch.equal(x_t[n:], asked)
    assert level.tolist() == 2 * [oracle.levels[int(step)] for step in t]


def test_what_is_compared_with_images_ends_where_they_do() -> None:
    for discriminator_input, steps in (("x_0", range(4)), ("x_prev", [0])):
        stage = config(schedule={"kind": "sde", "steps": 4}, discriminator_input=discriminator_input).build(SHAPE)
        oracle, x_t, z = Oracle(torch.full((1, 8, 8), 1.3), stage), torch.randn(4, 1, 8, 8), torch.zeros(4, 4)
        x0 = stage._denoised(oracle, x_t, torch.arange(4), z, None)
        torch.testing.assert_close(x0.amax((1, 2, 3)), torch.tensor([1.0 if t in steps else 1.3 for t in range(4)]))


def test_the_gradient_penalty_is_at_the_real_x_prev_alone() -> None:
    stage = config(r1=0.7).build(SHAPE)
    nets = random_networks(stage, torch.float32)
    discriminator, whole = nets["discriminator"], batch(n=3)
    shown: list[tuple[Tensor, ...]] = []
    discriminator.register_forward_pre_hook(lambda module, args: shown.append(args))
    loss = stage.loss(stage.phases()[1], nets, whole, KeyedRNG(0, whole.positions))
    ((x_prev, x_t, level, _),) = shown
    assert len(x_prev) == 3  # no generated ones are needed

    def one(x_prev: Tensor, x_t: Tensor, level: Tensor) -> Tensor:
        return discriminator(x_prev[None], x_t[None], level[None], None)[0]

    samples = zip(x_prev.detach(), x_t, level, strict=True)
    with sdpa_kernel(SDPBackend.MATH):
        rows = [torch.func.jacrev(one)(*arguments) for arguments in samples]
    expected = 0.7 / 2 * torch.stack(rows).square().sum((1, 2, 3))
    torch.testing.assert_close(loss.metrics["penalty"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("game", ["non_saturating", "relativistic"])
def test_losses_do_not_depend_on_how_a_batch_is_split(game: str) -> None:
    stage = config(loss=game, conditional=True).build(SHAPE)
    nets = random_networks(stage, torch.float32)
    whole = batch()
    for phase in stage.phases():
        together = stage.loss(phase, nets, whole, KeyedRNG(0, whole.positions)).per_sample
        few = rows_of(whole, slice(3, 8))
        apart = stage.loss(phase, nets, few, KeyedRNG(0, few.positions)).per_sample
        torch.testing.assert_close(apart, together[3:], rtol=1e-3, atol=1e-3)


def test_an_image_depends_on_its_index_and_label_alone() -> None:
    stage = config(conditional=True, schedule={"kind": "sde", "steps": 3}).build(SHAPE)
    nets = {name: net.eval() for name, net in random_networks(stage, torch.float32).items()}
    together = stage.generate(nets, KeyedRNG(3, torch.arange(5)), torch.arange(5) % 3)
    assert together.shape == (5, 1, 8, 8)
    assert together.dtype == torch.uint8
    apart = torch.cat([stage.generate(nets, KeyedRNG(3, torch.tensor([i])), torch.tensor([i % 3])) for i in range(5)])
    assert (together.int() - apart.int()).abs().max() <= 1  # a batch of another size rounds differently
    assert not torch.equal(together[0], together[3])
    assert not torch.equal(stage.generate(nets, KeyedRNG(3, torch.arange(5)), (torch.arange(5) + 1) % 3), together)


def test_each_phase_moves_its_own_network(runtime: Any) -> None:
    t = trainer(runtime, config(conditional=True).build(SHAPE))
    for step in range(3):
        t.train_step([batch(8 * step)])
    state = t.state()
    assert state["optimizer.discriminator.discriminator.stem.weight.step"] == 3 + 2
    assert state["optimizer.generator.generator.stem.weight.step"] == 3
    before = {name: [p.clone() for p in net.parameters()] for name, net in t.nets.items()}
    t._update(t.stage.phases()[2], [batch(24)], 1 / t.batch_size)
    same = {name: all(map(torch.equal, before[name], net.parameters())) for name, net in t.nets.items()}
    assert same == {"generator": False, "discriminator": True}
    assert math.isfinite(t.log_values()["penalty/penalty"])


def test_a_taught_stage_takes_the_steps_that_its_teacher_would_take() -> None:
    unet = trained_unet()
    stage = AdversarialDiffusion(config(conditional=True), SHAPE, unet.state_dict())
    nets = {name: net.eval() for name, net in stage.networks().items()}
    rng, labels = KeyedRNG(0, torch.arange(4)), torch.tensor([0, 1, 2, 0])
    schedule, fine = stage.config.schedule.build(LEVELS), LEVELS
    x_t = rng.normal("start", (1, 8, 8))
    for step in reversed(range(4)):
        t = torch.full((4,), step)
        a = float(schedule.alpha_bar(t)[0])
        level = int((fine.log_alpha_bar[1:] - math.log(a)).abs().argmin())
        eps = unet(x_t, torch.full((4,), level), labels)
        x0 = (x_t - math.sqrt(1 - a) * eps) / math.sqrt(a) / (1 + (1 - a) / a / 400)
        mean, variance = posterior(schedule.level(t), schedule.level(t - 1), x0, x_t)
        x_t = mean + variance.sqrt().float()[:, None, None, None] * rng.normal("reverse", (1, 8, 8), stream=step)
    images = stage.generate(nets, rng, labels)
    assert (images.int() - stage.codec.decode(x_t.detach()).int()).abs().max() <= 1


def test_a_teacher_of_another_kind_is_refused() -> None:
    trained = DDPMConfig.model_validate({"kind": "ddpm", "network": UNET, "schedule": {"kind": "cosine"}})
    stage = trained.build(SHAPE)
    teacher = {"teacher": TrainedStage(Path("runs/ddpm"), trained, SHAPE, stage, stage.networks(), None)}
    config().build(SHAPE, teacher)
    for key, changes in (("network", {"network": UNET | {"blocks": 2}}), ("levels", {"levels": {"kind": "linear"}})):
        with pytest.raises(UserError, match=rf"stage\.teacher\.run: runs/ddpm .* another stage.{key}: make it"):
            config(**changes).build(SHAPE, teacher)
    with pytest.raises(UserError, match=r"another stage\.conditional: make it False"):
        config(conditional=True).build(SHAPE, teacher)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"stage\.conditional needs labels.*data\.labels=true"):
        config(conditional=True).build(ImageShape(1, square(8)))
    with pytest.raises(ValueError, match=r"beta_min is 30\.0, above beta_max 20\.0"):
        config(schedule={"kind": "sde", "beta_min": 30.0})
    with pytest.raises(UserError, match=r"1000 is none of stage\.levels, which end at 999"):
        config(schedule={"kind": "timesteps", "timesteps": [500, 1000]}).build(SHAPE)
    with pytest.raises(ValueError, match="must ascend"):
        config(schedule={"kind": "timesteps", "timesteps": [500, 500]})
    with pytest.raises(ValueError, match="less than or equal to 8"):
        config(schedule={"kind": "sde", "steps": 9})
