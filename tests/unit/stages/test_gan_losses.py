"""The GAN losses and penalties: against the textbook, against direct autograd, and the dynamics that they lead to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffpipe.rng import KeyedRNG
from diffpipe.stages.gan_losses import (
    GENERATOR,
    AdversarialLossConfig,
    GANLoss,
    adversarial_loss,
    discriminator_loss,
    generator_loss,
    squared_gradient,
)
from tests.support.tiny_gans import SHAPE, batch, gan_config, random_networks


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


@pytest.mark.parametrize("gan_loss", TEXTBOOK)
def test_losses_and_their_gradients_are_the_textbook_formulas(gan_loss: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(50, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    for ours, textbook in zip((discriminator_loss, generator_loss), TEXTBOOK[gan_loss], strict=True):
        values, gradients = [], []
        for formula in (lambda *logits, ours=ours: ours(gan_loss, *logits), textbook):
            logits = [real.clone().requires_grad_(), fake.clone().requires_grad_()]
            values.append(formula(*logits))
            gradients += [torch.autograd.grad(values[-1].sum(), logits, allow_unused=True, materialize_grads=True)]
        torch.testing.assert_close(values[0], values[1])
        torch.testing.assert_close(gradients[0], gradients[1])


def test_losses_stay_finite_where_a_probability_is_zero() -> None:
    far = torch.tensor([-1e4, 1e4])
    for gan_loss in TEXTBOOK:
        for loss in (discriminator_loss, generator_loss):
            assert loss(gan_loss, far, -far).isfinite().all()  # pyright: ignore[reportArgumentType]


def discriminator_and_images() -> tuple[nn.Module, Tensor, Tensor]:
    net = random_networks(gan_config(conditional=True).build(SHAPE))["discriminator"]
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
    rules = AdversarialLossConfig(r1=r1, r2=r2, penalty_every=every)

    def discriminator(images: Tensor) -> Tensor:
        return net(images, labels.repeat(len(images) // 3))

    phase = rules.phases()[1 if every > 1 else 0]
    loss = adversarial_loss(rules, phase, discriminator, real, lambda: fake)
    torch.testing.assert_close(loss.metrics["penalty"], expected)
    if every > 1:
        torch.testing.assert_close(loss.per_sample, every * expected)
    else:
        gan_loss = discriminator_loss("relativistic", discriminator(real), discriminator(fake))
        torch.testing.assert_close(loss.per_sample, gan_loss + expected)


def test_the_penalty_of_a_quadratic_is_its_closed_form() -> None:
    # D(x) = a x·x / 2 has the gradient a x.
    x = torch.randn(4, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    a = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    squared = squared_gradient(a * x.square().sum((1, 2, 3)) / 2, x)
    torch.testing.assert_close(squared, 9 * x.square().sum((1, 2, 3)))
    (gradient,) = torch.autograd.grad(squared.sum(), a)
    torch.testing.assert_close(gradient, 6 * x.square().sum())


def test_a_lazy_penalty_moves_frozen_weights_on_average_as_the_one_of_every_step() -> None:
    stages = {every: gan_config(r1=0.7, r2=0.3, penalty_every=every).build(SHAPE) for every in (1, 5)}
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


def test_phases_without_penalty_or_with_one_every_step() -> None:
    assert [phase.name for phase in AdversarialLossConfig(r1=0, r2=0, penalty_every=4).phases()] == [
        "discriminator",
        "generator",
    ]
    assert [phase.name for phase in AdversarialLossConfig(penalty_every=1).phases()] == ["discriminator", "generator"]
    lazy = AdversarialLossConfig(penalty_every=16).phases()
    assert [(phase.name, phase.every) for phase in lazy] == [("discriminator", 1), ("penalty", 16), ("generator", 1)]
    assert [phase.name for phase in lazy if phase.lazy] == ["penalty"]
    assert not any(phase.lazy for phase in AdversarialLossConfig(penalty_every=16, penalty_correction=False).phases())


# The Dirac-GAN (Mescheder et al. 2018, definition 2.1): data are zero, the generator is one number theta, and the
# discriminator is D(x) = psi x. The equilibrium is theta = psi = 0.
SLOPE = {"non_saturating": 0.5, "hinge": 1.0, "relativistic": 0.5}  # of each loss where all logits are zero
PENALTIES = [(0.0, 0.0, 1), (0.3, 0.0, 1), (0.0, 0.7, 1), (0.3, 0.7, 1), (2.0, 1.0, 1), (0.3, 0.7, 4)]


def dirac_velocity(rules: AdversarialLossConfig, point: Tensor) -> Tensor:
    """Minus the gradients at (theta, psi), of both networks at once and averaged over the steps of a lazy penalty."""
    theta, psi = (number.clone().requires_grad_() for number in point)
    velocity = torch.zeros(2, dtype=torch.float64)
    for phase in rules.phases():
        real = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        loss = adversarial_loss(rules, phase, lambda x: psi * x[:, 0, 0, 0], real, lambda: theta.reshape(1, 1, 1, 1))
        trained = (theta, 0) if phase.name == GENERATOR else (psi, 1)
        (gradient,) = torch.autograd.grad(loss.per_sample.sum(), trained[0])
        velocity[trained[1]] -= gradient / phase.every
    return velocity


@pytest.mark.parametrize(("r1", "r2", "every"), PENALTIES)
@pytest.mark.parametrize("gan_loss", TEXTBOOK)
def test_the_eigenvalues_at_the_equilibrium_are_the_closed_form(
    gan_loss: GANLoss, r1: float, r2: float, every: int
) -> None:
    """-gamma/2 ± sqrt(gamma²/4 - slope²) (Mescheder et al. 2018, lemma 2.3 and section 4.1), where gamma = r1 + r2.

    Without penalties both are imaginary: the game circles the equilibrium. With them both real parts are negative.
    """
    rules = AdversarialLossConfig(loss=gan_loss, r1=r1, r2=r2, penalty_every=every)
    h = 1e-4
    columns = [
        (dirac_velocity(rules, h * unit) - dirac_velocity(rules, -h * unit)) / (2 * h) for unit in torch.eye(2).double()
    ]
    gamma = torch.tensor(r1 + r2, dtype=torch.complex128)
    root = (gamma**2 / 4 - SLOPE[gan_loss] ** 2).sqrt()
    expected = torch.stack([-gamma / 2 - root, -gamma / 2 + root])
    found = torch.linalg.eigvals(torch.stack(columns, dim=1))
    # The two of a pair come in any order: compare their sum and their product.
    torch.testing.assert_close(found.sum(), expected.sum(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.prod(), expected.prod(), rtol=0, atol=1e-6)
    assert bool((found.real < -1e-3).all()) == (r1 + r2 > 0)


@pytest.mark.parametrize("gan_loss", TEXTBOOK)
def test_the_game_converges_from_afar_with_penalties_and_circles_without(gan_loss: GANLoss) -> None:
    start = torch.tensor([0.9, 0.5], dtype=torch.float64)

    def distance(rules: AdversarialLossConfig) -> float:
        """From the equilibrium, after 200 steps of gradient descent of both networks at once."""
        point = start
        for _ in range(200):
            point = point + 0.2 * dirac_velocity(rules, point)
        return float(point.norm())

    for r1, r2 in ((0.5, 0.0), (0.0, 0.5)):
        assert distance(AdversarialLossConfig(loss=gan_loss, r1=r1, r2=r2)) < 1e-2
    assert distance(AdversarialLossConfig(loss=gan_loss, r1=0, r2=0)) > 0.5
