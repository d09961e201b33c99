"""The GAN stage: its phases through the trainer, what its networks promise, and that it learns a toy."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, ImageShape
from diffpipe.resolution import square
from diffpipe.rng import KeyedRNG
from diffpipe.stages.gan import GAN
from diffpipe.stages.gan_losses import GANLoss, adversarial_loss
from diffpipe.train.runtime import Runtime
from tests.support.operator_counts import OperatorCounts
from tests.support.tiny_gans import NETS, SHAPE, batch, gan_config, random_networks, rows_of, trainer


@pytest.mark.parametrize("gan_loss", get_args(GANLoss))
@pytest.mark.parametrize("every", [1, 2])
def test_losses_do_not_depend_on_how_a_batch_is_split(gan_loss: str, every: int) -> None:
    stage = gan_config(loss=gan_loss, conditional=True, penalty_every=every).build(SHAPE)
    nets = random_networks(stage, torch.float32)
    whole = batch()
    for phase in stage.phases():
        together = stage.loss(phase, nets, whole, KeyedRNG(0, whole.positions))
        for rows in (slice(0, 3), slice(3, 8)):
            few = rows_of(whole, rows)
            apart = stage.loss(phase, nets, few, KeyedRNG(0, few.positions))
            torch.testing.assert_close(apart.per_sample, together.per_sample[rows], rtol=1e-4, atol=1e-5)
            assert apart.metrics.keys() == together.metrics.keys()
            for name, value in apart.metrics.items():
                torch.testing.assert_close(value, together.metrics[name][rows], rtol=1e-4, atol=1e-5)


def test_the_phases_see_latents_of_their_own() -> None:
    stage = gan_config(loss="hinge", r2=0.1).build(SHAPE)
    asked: list[Tensor] = []
    nets = random_networks(stage, torch.float32)
    nets["generator"].register_forward_pre_hook(lambda module, args: asked.append(args[0]))
    for phase in stage.phases():
        stage.loss(phase, nets, batch(), KeyedRNG(0, batch().positions))
    stage.generate(nets, KeyedRNG(0, batch().positions), None)
    assert len(asked) == 4
    assert len({z.numpy().tobytes() for z in asked}) == 4


def test_a_phase_moves_its_own_network_and_the_penalty_shares_the_discriminators_optimizer(runtime: Runtime) -> None:
    t = trainer(runtime, gan_config(penalty_every=3, conditional=True).build(SHAPE))
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
    values = t.log_values()
    # The penalty's logits are not logged, and each mean is over its own phase's updates.
    assert {"discriminator/real", "discriminator/fake", "penalty/penalty", "generator/loss"} <= values.keys()
    assert values["penalty/loss"] == pytest.approx(3 * values["penalty/penalty"], rel=1e-5)
    # Three steps make four updates of the discriminator.
    (generator,), (discriminator,) = (t.optimizers[name,].adamw.param_groups for name in ("generator", "discriminator"))
    assert (generator["lr"], generator["betas"]) == (1e-3, (0.0, 0.99))
    assert discriminator["lr"] == pytest.approx(1e-3 * 3 / 4)
    assert discriminator["betas"] == (0.0, pytest.approx(0.99**0.75))


@pytest.mark.parametrize("every", [1, 2])
def test_a_step_never_waits_for_the_device(every: int) -> None:
    with Runtime.start("bf16", "cpu") as runtime:
        t = trainer(runtime, gan_config(penalty_every=every, conditional=True).build(SHAPE))
        t.train_step([batch()])
        t.step = 0  # all phases are due again
        with OperatorCounts() as calls:
            t.train_step([batch()])
    assert calls.counts["_fused_adamw_"] == (2 if every == 1 else 3)
    assert calls.counts["_local_scalar_dense"] == 0


def test_the_penalty_is_in_full_precision_under_autocast() -> None:
    stage = gan_config(penalty_every=1).build(SHAPE)
    nets = random_networks(stage, torch.float32)
    phase, whole = stage.phases()[0], batch()
    fake = torch.zeros(8, 1, 8, 8)

    def discriminator(images: Tensor) -> Tensor:
        return nets["discriminator"](images)

    real = stage.codec.encode(whole.images)
    full = adversarial_loss(stage.config, phase, discriminator, real, lambda: fake)
    with torch.autocast("cpu", torch.bfloat16):
        under = adversarial_loss(stage.config, phase, discriminator, real, lambda: fake)
        rounded = adversarial_loss(
            stage.config.model_copy(update={"r1": 0, "r2": 0}), phase, discriminator, real, lambda: fake
        )
    assert torch.equal(under.metrics["penalty"], full.metrics["penalty"])
    assert not torch.equal(rounded.metrics["real"], full.metrics["real"])


def test_an_image_depends_on_its_index_its_label_and_the_temperature_alone() -> None:
    stage = gan_config(conditional=True).build(SHAPE)
    nets = random_networks(stage, torch.float32)
    together = stage.generate(nets, KeyedRNG(3, torch.arange(6)), torch.arange(6) % 3)
    assert together.shape == (6, 1, 8, 8)
    assert together.dtype == torch.uint8
    apart = torch.cat([stage.generate(nets, KeyedRNG(3, torch.tensor([i])), torch.tensor([i % 3])) for i in range(6)])
    assert (together.int() - apart.int()).abs().max() <= 1  # a batch of another size rounds differently
    assert len({image.numpy().tobytes() for image in together}) == 6
    assert not torch.equal(stage.generate(nets, KeyedRNG(3, torch.arange(6)), (torch.arange(6) + 1) % 3), together)
    cold = gan_config(conditional=True, sampler={"temperature": 0.0}).build(SHAPE)
    images = cold.generate(nets, KeyedRNG(3, torch.arange(6)), torch.zeros(6, dtype=torch.int64))
    assert all(torch.equal(image, images[0]) for image in images)
    # With no label given, each index has one of its own.
    drawn = KeyedRNG(3, torch.arange(6)).integers("label", 3)
    expected = stage.generate(nets, KeyedRNG(3, torch.arange(6)), drawn)
    assert torch.equal(stage.generate(nets, KeyedRNG(3, torch.arange(6)), None), expected)


class OneNumberGAN(GAN):
    """The stage with networks of its own: images of a single pixel, by two small perceptrons."""

    def networks(self) -> dict[str, nn.Module]:
        latent = self.config.generator.latent
        return {"generator": Perceptron(latent, image=True), "discriminator": Perceptron(1, image=False)}


class Perceptron(nn.Module):
    def __init__(self, inputs: int, image: bool) -> None:
        super().__init__()
        self.image = image
        self.layers = nn.Sequential(
            nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0)
        )

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        number = self.layers(x.flatten(1))
        return number[:, None, None, None] if self.image else number


def bimodal(step: int, n: int) -> Batch:
    """Dark and bright pixels by position: 62 or 192, with a standard deviation of 8."""
    p = torch.arange(step * n, step * n + n)
    grey = 62 + 130 * KeyedRNG(9, p).integers("mode", 2) + 8 * KeyedRNG(9, p).normal("grey", ())
    return Batch(grey[:, None, None, None].round().to(torch.uint8), None, p, [""] * n)


@pytest.mark.slow
def test_it_learns_both_modes_of_a_toy(runtime: Runtime) -> None:
    """At least two of three seeds do: a GAN may collapse to one mode, though in trials none of 40 seeds did here.

    The networks are small perceptrons on one pixel. The package's own tiny networks cannot show this: their group
    normalization has one group per channel and removes an image's mean grey, which is all that sets these modes apart.
    They collapsed for most seeds, and the rounding of the processor decided for which.
    """
    stage = gan_config(generator=NETS | {"latent": 2}, penalty_every=4)
    learned = []
    for seed in range(3):
        t = trainer(
            runtime, OneNumberGAN(stage, ImageShape(1, square(4))), batch_size=32, seed=seed, lr=2e-2, clip=100.0
        )
        for step in range(150):
            t.train_step([bimodal(step, 32)])
        grey = t.stage.generate(t.ema_networks(), KeyedRNG(0, torch.arange(500)), None).float().flatten()  # pyright: ignore[reportAttributeAccessIssue]
        near = [float(((grey - mode).abs() < 32).float().mean()) for mode in (62, 192)]
        learned.append(min(near) > 0.25 and sum(near) > 0.75)
    assert sum(learned) >= 2


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"stage\.conditional needs labels.*data\.labels=true"):
        gan_config(conditional=True).build(ImageShape(1, square(8)))
    with pytest.raises(
        UserError, match=r"data\.resolution 9 cannot be halved 1 time for stage\.generator\.channel_mult"
    ):
        gan_config().build(ImageShape(1, square(9)))
    with pytest.raises(UserError, match=r"cannot be halved 2 times for stage\.discriminator\.channel_mult \[1, 1, 1\]"):
        gan_config(discriminator=NETS | {"channel_mult": (1, 1, 1)}).build(ImageShape(1, square(6)))
