"""GAN losses and penalties against direct autograd, the phases through the trainer, and what the networks promise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, ImageShape
from diffpipe.nn.discriminator import Discriminator
from diffpipe.rng import KeyedRNG
from diffpipe.stages.games import GameConfig, discriminator_loss, generator_loss, play, squared_gradient
from diffpipe.stages.gan import GANConfig
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.loop import Trainer
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.runtime import Runtime
from tests.unit.train.test_loop import Calls

NETS = {"channels": 8, "channel_mult": (1, 2), "blocks": 1}
SHAPE = ImageShape(channels=1, resolution=8, classes=3)


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime.start("fp32", "cpu") as started:
        yield started


def config(**changes: object) -> GANConfig:
    return GANConfig.model_validate(
        {"kind": "gan", "generator": NETS | {"latent": 4}, "discriminator": NETS, "penalty_every": 2, **changes}
    )


def batch(start: int = 0, n: int = 8, resolution: int = 8) -> Batch:
    p = torch.arange(start, start + n)
    images = (torch.arange(resolution * resolution) * 7 + p[:, None] * 37) % 256
    images = images.to(torch.uint8).reshape(n, 1, resolution, resolution)
    return Batch(images, p % 3, p, [str(i) for i in p.tolist()])


def part(whole: Batch, rows: slice) -> Batch:
    assert whole.labels is not None
    return Batch(whole.images[rows], whole.labels[rows], whole.positions[rows], whole.keys[rows])


def trainer(runtime: Runtime, stage: Any, batch_size: int = 8, **optimizer: Any) -> Trainer:
    settings = OptimizerConfig.model_validate({"lr": 1e-3, "warmup": 0, "betas": (0.0, 0.99), **optimizer})
    train = TrainConfig(steps=100, log_every=1)
    return Trainer(stage, runtime, train, settings, EMAConfig(), seed=3, batch_size=batch_size)


def random_networks(stage: Any, dtype: torch.dtype = torch.float64) -> dict[str, nn.Module]:
    """A stage's networks with no zero left in them, so that every path shows."""
    torch.manual_seed(0)
    nets = {name: net.to(dtype) for name, net in stage.networks().items()}
    for net in nets.values():
        for p in net.parameters():
            nn.init.normal_(p, std=0.2)
    return nets


# The textbook, written down as it stands: D is a probability, V the value that D maximizes.
def log_d(x: Tensor) -> Tensor:
    return torch.log(torch.sigmoid(x))


TEXTBOOK = {
    "non_saturating": (
        lambda real, fake: -log_d(real) - torch.log(1 - torch.sigmoid(fake)),
        lambda real, fake: -log_d(fake),
    ),
    "hinge": (
        lambda real, fake: (1 - real).clamp(min=0) + (1 + fake).clamp(min=0),
        lambda real, fake: -fake,
    ),
    "relativistic": (lambda real, fake: -log_d(real - fake), lambda real, fake: -log_d(fake - real)),
}


@pytest.mark.parametrize("game", TEXTBOOK)
def test_losses_and_their_gradients_are_the_textbook_formulas(game: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(50, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    for ours, textbook in zip((discriminator_loss, generator_loss), TEXTBOOK[game], strict=True):
        values, gradients = [], []
        for formula in (lambda *logits, ours=ours: ours(game, *logits), textbook):
            logits = [real.clone().requires_grad_(), fake.clone().requires_grad_()]
            values.append(formula(*logits))
            gradients += [torch.autograd.grad(values[-1].sum(), logits, allow_unused=True, materialize_grads=True)]
        torch.testing.assert_close(values[0], values[1])
        torch.testing.assert_close(gradients[0], gradients[1])


def test_losses_stay_finite_where_a_probability_is_zero() -> None:
    far = torch.tensor([-1e4, 1e4])
    for game in TEXTBOOK:
        for loss in (discriminator_loss, generator_loss):
            assert loss(game, far, -far).isfinite().all()  # pyright: ignore[reportArgumentType]


def discriminator_and_images() -> tuple[nn.Module, Tensor, Tensor]:
    net = random_networks(config(conditional=True).build(SHAPE))["discriminator"]
    generator = torch.Generator().manual_seed(1)
    real, fake = (torch.randn(3, 1, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    return net, real, fake


def jacobian_norms(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The squared norm of each image's own gradient, one image at a time."""

    def one(x: Tensor, y: Tensor) -> Tensor:
        return net(x[None], y[None])[0]

    rows = [torch.func.jacrev(one)(x, y) for x, y in zip(images, labels, strict=True)]
    return torch.stack(rows).square().sum((1, 2, 3))


@pytest.mark.parametrize(("r1", "r2"), [(0.7, 0.0), (0.0, 0.3), (0.7, 0.3)])
@pytest.mark.parametrize("every", [1, 4])
def test_the_penalty_is_that_of_explicit_jacobians(r1: float, r2: float, every: int) -> None:
    net, real, fake = discriminator_and_images()
    labels = torch.tensor([0, 2, 1])
    expected = r1 / 2 * jacobian_norms(net, real, labels) + r2 / 2 * jacobian_norms(net, fake, labels)
    rules = GameConfig(r1=r1, r2=r2, penalty_every=every)

    def judge(images: Tensor) -> Tensor:
        return net(images, labels.repeat(len(images) // 3))

    phase = rules.phases()[1 if every > 1 else 0]
    loss = play(rules, phase, judge, real, lambda: fake)
    torch.testing.assert_close(loss.metrics["penalty"], expected)
    if every > 1:
        torch.testing.assert_close(loss.per_sample, every * expected)
    else:
        game = discriminator_loss("relativistic", judge(real), judge(fake))
        torch.testing.assert_close(loss.per_sample, game + expected)


def test_the_penalty_of_a_quadratic_is_its_closed_form() -> None:
    # D(x) = a x·x / 2 has the gradient a x.
    x = torch.randn(4, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    a = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    squared = squared_gradient(a * x.square().sum((1, 2, 3)) / 2, x)
    torch.testing.assert_close(squared, 9 * x.square().sum((1, 2, 3)))
    (gradient,) = torch.autograd.grad(squared.sum(), a)
    torch.testing.assert_close(gradient, 6 * x.square().sum())


def test_a_lazy_penalty_moves_frozen_weights_on_average_as_the_one_of_every_step() -> None:
    stages = {every: config(r1=0.7, r2=0.3, penalty_every=every).build(SHAPE) for every in (1, 5)}
    nets = random_networks(stages[1], torch.float32)
    parameters = list(nets["discriminator"].parameters())

    def gradient(every: int) -> list[Tensor]:
        """The mean gradient over five steps that all see one batch and one set of latents."""
        total = [torch.zeros_like(p) for p in parameters]
        for step in range(5):
            for phase in stages[every].phases():
                if phase.trains == ("discriminator",) and phase.due(step):
                    # The penalty's latents are of its own purpose: play both by the discriminator's.
                    renamed = _Renamed(0, batch().positions)
                    loss = stages[every].loss(phase, nets, batch(), renamed).per_sample.sum()
                    gradients = torch.autograd.grad(loss, parameters)
                    total = [before + g / 5 for before, g in zip(total, gradients, strict=True)]
        return total

    wanted = gradient(1)
    largest = max(float(each.abs().max()) for each in wanted)  # some are zero but for rounding
    for lazy, every_step in zip(gradient(5), wanted, strict=True):
        atol = 1e-3 * float(every_step.abs().max()) + 1e-6 * largest
        torch.testing.assert_close(lazy, every_step, rtol=1e-3, atol=atol)


class _Renamed(KeyedRNG):
    def normal(self, purpose: str, shape: Any, stream: int = 0) -> Tensor:
        return super().normal("latent", shape, stream)


@pytest.mark.parametrize("game", TEXTBOOK)
@pytest.mark.parametrize("every", [1, 2])
def test_losses_do_not_depend_on_how_a_batch_is_split(game: str, every: int) -> None:
    stage = config(loss=game, conditional=True, penalty_every=every).build(SHAPE)
    nets = random_networks(stage, torch.float32)
    whole = batch()
    for phase in stage.phases():
        together = stage.loss(phase, nets, whole, KeyedRNG(0, whole.positions))
        for rows in (slice(0, 3), slice(3, 8)):
            few = part(whole, rows)
            apart = stage.loss(phase, nets, few, KeyedRNG(0, few.positions))
            torch.testing.assert_close(apart.per_sample, together.per_sample[rows], rtol=1e-4, atol=1e-5)
            assert apart.metrics.keys() == together.metrics.keys()
            for name, value in apart.metrics.items():
                torch.testing.assert_close(value, together.metrics[name][rows], rtol=1e-4, atol=1e-5)


def test_the_phases_see_latents_of_their_own() -> None:
    stage = config(loss="hinge", r2=0.1).build(SHAPE)
    asked: list[Tensor] = []
    nets = random_networks(stage, torch.float32)
    nets["generator"].register_forward_pre_hook(lambda module, args: asked.append(args[0]))
    for phase in stage.phases():
        stage.loss(phase, nets, batch(), KeyedRNG(0, batch().positions))
    stage.generate(nets, KeyedRNG(0, batch().positions), None)
    assert len(asked) == 4
    assert len({z.numpy().tobytes() for z in asked}) == 4


def test_a_phase_moves_its_own_network_and_the_penalty_shares_the_discriminators_optimizer(runtime: Runtime) -> None:
    t = trainer(runtime, config(penalty_every=3, conditional=True).build(SHAPE))
    for step in range(5):
        for phase in t.stage.phases():
            if not phase.due(step):
                continue
            before = {name: [p.clone() for p in net.parameters()] for name, net in t.nets.items()}
            t._update(phase, [batch(8 * step)], 1 / t.batch_size)
            for name, net in t.nets.items():
                moved = [not torch.equal(a, b) for a, b in zip(before[name], net.parameters(), strict=True)]
                assert any(moved) == (name in phase.trains), (phase.name, name)
        t.step += 1
    state = t.state()
    assert {key.split(".")[1] for key in state if key.startswith("optimizer.")} == {"generator", "discriminator"}
    for p in ("discriminator.stem.weight", "discriminator.label.weight"):
        assert state[f"optimizer.discriminator.{p}.step"] == 5 + 2  # penalties at steps 0 and 3
    assert state["optimizer.generator.generator.start.weight.step"] == 5
    values = t._log_values()
    # The penalty's logits are not logged, and each mean is over its own phase's updates.
    assert {"discriminator/real", "discriminator/fake", "penalty/penalty", "generator/loss"} <= values.keys()
    assert values["penalty/loss"] == pytest.approx(3 * values["penalty/penalty"], rel=1e-5)


@pytest.mark.parametrize("every", [1, 2])
def test_a_step_never_waits_for_the_device(every: int) -> None:
    with Runtime.start("bf16", "cpu") as runtime:
        t = trainer(runtime, config(penalty_every=every, conditional=True).build(SHAPE))
        t.train_step([batch()])
        t.step = 0  # all phases are due again
        with Calls() as calls:
            t.train_step([batch()])
    assert calls.counts["_fused_adamw_"] == (2 if every == 1 else 3)
    assert calls.counts["_local_scalar_dense"] == 0


def test_phases_without_penalty_or_with_one_every_step() -> None:
    assert [phase.name for phase in GameConfig(r1=0, r2=0, penalty_every=4).phases()] == ["discriminator", "generator"]
    assert [phase.name for phase in GameConfig(penalty_every=1).phases()] == ["discriminator", "generator"]
    lazy = GameConfig(penalty_every=16).phases()
    assert [(phase.name, phase.every) for phase in lazy] == [("discriminator", 1), ("penalty", 16), ("generator", 1)]


def test_the_penalty_is_in_full_precision_under_autocast() -> None:
    stage = config(penalty_every=1).build(SHAPE)
    nets = random_networks(stage, torch.float32)
    phase, whole = stage.phases()[0], batch()
    fake = torch.zeros(8, 1, 8, 8)

    def judge(images: Tensor) -> Tensor:
        return nets["discriminator"](images)

    real = stage.codec.encode(whole.images)
    full = play(stage.config, phase, judge, real, lambda: fake)
    with torch.autocast("cpu", torch.bfloat16):
        under = play(stage.config, phase, judge, real, lambda: fake)
        rounded = play(stage.config.model_copy(update={"r1": 0, "r2": 0}), phase, judge, real, lambda: fake)
    assert torch.equal(under.metrics["penalty"], full.metrics["penalty"])
    assert not torch.equal(rounded.metrics["real"], full.metrics["real"])


def test_logits_far_from_zero_keep_their_small_differences_under_autocast() -> None:
    torch.manual_seed(0)
    net = config(loss="hinge").build(SHAPE).networks()["discriminator"]
    assert isinstance(net, Discriminator)
    nn.init.constant_(net.whole.bias, 1000.0)  # bfloat16 knows 1000 and 1004, and nothing between
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = net(torch.randn(64, 1, 8, 8))
    assert logits.dtype == torch.float32
    assert len(logits.unique()) > 32


def test_an_image_depends_on_its_index_its_label_and_the_temperature_alone() -> None:
    stage = config(conditional=True).build(SHAPE)
    nets = random_networks(stage, torch.float32)
    together = stage.generate(nets, KeyedRNG(3, torch.arange(6)), torch.arange(6) % 3)
    assert together.shape == (6, 1, 8, 8)
    assert together.dtype == torch.uint8
    apart = torch.cat([stage.generate(nets, KeyedRNG(3, torch.tensor([i])), torch.tensor([i % 3])) for i in range(6)])
    assert (together.int() - apart.int()).abs().max() <= 1  # a batch of another size rounds differently
    assert len({image.numpy().tobytes() for image in together}) == 6
    assert not torch.equal(stage.generate(nets, KeyedRNG(3, torch.arange(6)), (torch.arange(6) + 1) % 3), together)
    cold = config(conditional=True, sampler={"temperature": 0.0}).build(SHAPE)
    images = cold.generate(nets, KeyedRNG(3, torch.arange(6)), torch.zeros(6, dtype=torch.int64))
    assert all(torch.equal(image, images[0]) for image in images)
    # With no label given, each index has one of its own.
    drawn = KeyedRNG(3, torch.arange(6)).integers("label", 3)
    expected = stage.generate(nets, KeyedRNG(3, torch.arange(6)), drawn)
    assert torch.equal(stage.generate(nets, KeyedRNG(3, torch.arange(6)), None), expected)


def test_a_new_network_neither_swells_nor_fades_its_input_with_depth() -> None:
    for blocks in (1, 12):
        stage = config(generator=NETS | {"latent": 4, "blocks": blocks}).build(SHAPE)
        torch.manual_seed(0)
        nets = stage.networks()
        images = nets["generator"](torch.randn(64, 4)).detach()
        assert 0.02 < float(images.std()) < 2
        assert nets["discriminator"](images).detach().abs().max() < 10


class Bimodal:
    """Images of one grey, dark or bright by their position, and a little noise."""

    def __call__(self, step: int, n: int) -> Batch:
        p = torch.arange(step * n, step * n + n)
        bright = KeyedRNG(9, p).integers("mode", 2)
        grey = 60 + 130 * bright + 8 * KeyedRNG(9, p).normal("grey", ())
        images = grey[:, None, None, None].expand(n, 1, 4, 4).round().clamp(0, 255).to(torch.uint8).contiguous()
        return Batch(images, None, p, [""] * n)


def test_it_learns_both_modes_of_a_toy(runtime: Runtime) -> None:
    net = {"channels": 8, "channel_mult": (1, 1)}
    stage = config(generator=net | {"latent": 2}, discriminator=net, r1=0.5, r2=0.5, penalty_every=8)
    t = trainer(runtime, stage.build(ImageShape(1, 4)), batch_size=32, lr=2e-3, clip=100.0)
    data = Bimodal()
    for step in range(250):
        t.train_step([data(step, 32)])
    made = t.stage.generate(t.ema_networks(), KeyedRNG(0, torch.arange(500)), None)  # pyright: ignore[reportAttributeAccessIssue]
    grey = made.float().mean((1, 2, 3))
    near = [float(((grey - mode).abs() < 32).float().mean()) for mode in (60, 190)]
    assert min(near) > 0.25
    assert sum(near) > 0.75


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"stage\.conditional needs labels.*data\.labels=true"):
        config(conditional=True).build(ImageShape(1, 8))
    with pytest.raises(
        UserError, match=r"data\.resolution 9 cannot be halved 1 times for stage\.generator\.channel_mult"
    ):
        config().build(ImageShape(1, 9))
    with pytest.raises(UserError, match=r"cannot be halved 2 times for stage\.discriminator\.channel_mult \[1, 1, 1\]"):
        config(discriminator=NETS | {"channel_mult": (1, 1, 1)}).build(ImageShape(1, 6))
