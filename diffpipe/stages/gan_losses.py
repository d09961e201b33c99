"""The losses of generator and discriminator, and the gradient penalties that make their training converge.

A high logit means real. All values here are one number per sample; no network is built here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from einops import reduce
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffpipe.config import Config
from diffpipe.interfaces import Loss, Phase
from diffpipe.precision import float32_products

GANLoss = Literal["non_saturating", "hinge", "relativistic"]
LogitsFunction = Callable[[Tensor], Tensor]

DISCRIMINATOR, PENALTY, GENERATOR = "discriminator", "penalty", "generator"


class AdversarialLossConfig(Config):
    """The adversarial loss, and the gradient penalties that keep the discriminator smooth."""

    loss: GANLoss = "relativistic"
    """The adversarial loss: non_saturating (Goodfellow et al. 2014), hinge (Miyato et al. 2018) or relativistic
    (Jolicoeur-Martineau 2019), which Huang et al. 2024 find the most stable."""
    r1: float = Field(default=0.1, ge=0)
    """Weight gamma of the gradient penalty at real images, gamma/2 ‖∇D‖² (Mescheder et al. 2018, eq. 9)."""
    r2: float = Field(default=0.1, ge=0)
    """Weight gamma of the gradient penalty at generated images, gamma/2 ‖∇D‖²."""
    penalty_every: int = Field(default=1, ge=1)
    """1: the penalties are part of the discriminator's loss. k > 1: they are an update of their own at every k-th step,
    k times as strong (Karras et al. 2020, appendix B)."""
    penalty_correction: bool = True
    """With penalty_every = k > 1, k steps make k + 1 updates of the discriminator. So its learning rate is multiplied
    by c = k / (k + 1), and its betas are raised to c (Karras et al. 2020, appendix B). A run of an earlier version goes
    on without."""

    def phases(self) -> tuple[Phase, ...]:
        """The updates of a step: the discriminator's, that of its penalties if they have their own, the generator's."""
        penalizes = bool(self.r1 or self.r2)
        lazy = penalizes and self.penalty_every > 1
        correct, every = self.penalty_correction, self.penalty_every
        penalty = Phase(PENALTY, trains=(DISCRIMINATOR,), every=every, penalizes=True, lazy=correct)
        return (
            Phase(DISCRIMINATOR, trains=(DISCRIMINATOR,), penalizes=penalizes and not lazy),
            *((penalty,) if lazy else ()),
            Phase(GENERATOR, trains=(GENERATOR,)),
        )


def discriminator_loss(loss: GANLoss, real: Float[Tensor, " b"], fake: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """The discriminator's loss of each pair of logits.

    non_saturating: -log sigmoid(real) - log(1 - sigmoid(fake)) (Goodfellow et al. 2014, eq. 1).
    hinge: Lim & Ye 2017; Miyato et al. 2018, eq. 16.
    relativistic: -log sigmoid(real - fake) (Jolicoeur-Martineau 2019; Huang et al. 2024, eq. 2).
    """
    match loss:
        case "non_saturating":
            return F.softplus(-real) + F.softplus(fake)
        case "hinge":
            return F.relu(1 - real) + F.relu(1 + fake)
        case "relativistic":
            return F.softplus(fake - real)


def generator_loss(loss: GANLoss, real: Float[Tensor, " b"], fake: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """The generator's loss of each pair of logits. Only the relativistic loss depends on the real one.

    non_saturating: -log sigmoid(fake) (Goodfellow et al. 2014, section 3); hinge: Miyato et al. 2018, eq. 17.
    """
    match loss:
        case "non_saturating":
            return F.softplus(-fake)
        case "hinge":
            return -fake
        case "relativistic":
            return F.softplus(real - fake)


def squared_gradient(logits: Float[Tensor, " b"], x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """‖∇_x D(x)‖² of each sample, itself differentiable (Mescheder et al. 2018, eqs. 9 and 10, are gamma/2 times it).

    No logit depends on another sample, so the gradient of the sum is that of each sample.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return reduce(gradient.square(), "b c h w -> b", "sum")


def adversarial_loss(
    config: AdversarialLossConfig,
    phase: Phase,
    discriminator: LogitsFunction,
    real: Float[Tensor, "b c h w"],
    generate: Callable[[], Float[Tensor, "b c h w"]],
) -> Loss:
    """The loss of the phase. `discriminator` takes real images, generated ones, or both, the real ones first.

    A phase that trains the discriminator calls it once. `generate` is called where the phase needs generated images;
    where it trains the discriminator, no gradient flows through them.
    """
    if phase.name == GENERATOR:
        at_fake = discriminator(generate())
        if config.loss != "relativistic":
            return Loss(generator_loss(config.loss, at_fake, at_fake))
        with torch.no_grad():  # the generator cannot change it
            at_real = discriminator(real)
        return Loss(generator_loss(config.loss, at_real, at_fake))
    if phase.name == PENALTY:
        images = torch.cat([real, generate().detach()]) if config.r2 else real
        logits, penalty = _penalized(config, discriminator, images, len(real))
        # DDP expects a gradient for every parameter, also for one like the last bias, which has none in the penalty.
        untouched = 0 * reduce(logits, "(n b) -> b", "sum", b=len(real))
        return Loss(config.penalty_every * penalty + untouched, {"penalty": penalty.detach()})
    images = torch.cat([real, generate().detach()])
    if config.penalty_every > 1 or not (config.r1 or config.r2):
        at_real, at_fake = discriminator(images).chunk(2)
        metrics = {"real": at_real.detach(), "fake": at_fake.detach()}
        return Loss(discriminator_loss(config.loss, at_real, at_fake), metrics)
    logits, penalty = _penalized(config, discriminator, images, len(real))
    at_real, at_fake = logits.chunk(2)
    metrics = {"real": at_real.detach(), "fake": at_fake.detach(), "penalty": penalty.detach()}
    return Loss(discriminator_loss(config.loss, at_real, at_fake) + penalty, metrics)


def _penalized(
    config: AdversarialLossConfig, discriminator: LogitsFunction, images: Float[Tensor, "n c h w"], b: int
) -> tuple[Float[Tensor, " n"], Float[Tensor, " b"]]:
    """The logits and the penalty of each sample. The first b images are real, the others generated.

    In full precision: a squared gradient of a gradient has no digits to spare.
    """
    images = images.detach().requires_grad_()
    # The fused kernels of attention have no second derivative.
    math = sdpa_kernel(SDPBackend.MATH)
    with torch.autocast(images.device.type, enabled=False), float32_products(tf32=False), math:
        logits = discriminator(images)
        squared = squared_gradient(logits, images)
    penalty = config.r1 / 2 * squared[:b]
    return logits, penalty + config.r2 / 2 * squared[b:] if len(squared) > b else penalty
