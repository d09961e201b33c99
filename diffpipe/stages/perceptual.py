"""Losses that sharpen reconstructions beside their likelihood: a perceptual distance, and a discriminator of patches.

Rombach et al. 2022 (section 3.1) train the autoencoder of a latent diffusion with both, after Esser et al. 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from diffpipe.config import Config
from diffpipe.dependency import Dependency
from diffpipe.errors import UserError
from diffpipe.interfaces import ImageShape, Phase
from diffpipe.nn.levels import LevelsConfig
from diffpipe.precision import float32_products
from diffpipe.stages.gan_losses import discriminator_loss, generator_loss

DISCRIMINATOR = "discriminator"
Features = Callable[[Tensor], Sequence[Tensor]]
"""A frozen network: float32 images [b 3 h w] in [-1, 1] to feature maps [b c h w], each of its own size."""


class PerceptualConfig(Config):
    """A perceptual loss: the distance between an image and its reconstruction in the features of a network."""

    weight: float = Field(default=1.0, gt=0)
    """Weight of the distance beside the stage's own loss."""
    features: str = "efficientnet_lite0"
    """The feature network: efficientnet_lite0, or a plug-in's: any callable from images [b 3 h w] in [-1, 1] to
    a list of feature maps that is differentiable in the images."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """SHA-256 of the feature network's weights; null: those that training starts with, which the run then keeps."""


class PatchConfig(Config):
    """A discriminator of patches (PatchGAN, Isola et al. 2017), trained by the hinge loss."""

    weight: float = Field(default=0.1, gt=0)
    """Weight of the discriminator's logits beside the stage's own loss."""
    start: int = Field(default=0, ge=0)
    """The first step with the discriminator. Before it, the autoencoder learns to reconstruct."""
    network: LevelsConfig = LevelsConfig(channel_mult=(1, 2))
    """The discriminator. With one block per level, a patch is 16×16 pixels for two levels, 34×34 for three, 70×70 for
    four."""


def perceptual_dependencies(config: PerceptualConfig | None) -> Sequence[Dependency]:
    """The feature network of the perceptual loss, where there is one."""
    if config is None:
        return ()
    return (Dependency("features", "stage.perceptual", "features", config.features, config.sha256, needed="training"),)


def coder_phases(
    name: str, adversarial: str, coder: tuple[str, ...], perceptual: PerceptualConfig | None, patch: PatchConfig | None
) -> Sequence[Phase]:
    """The phases of an autoencoder: `name`, and with a discriminator from its first step on that and `adversarial`.

    coder: the names of the networks that both train.
    """
    exact = perceptual is not None
    if patch is None:
        return (Phase(name, trains=coder, exact=exact),)
    return (
        Phase(name, trains=coder, until=patch.start, exact=exact),
        Phase(DISCRIMINATOR, trains=(DISCRIMINATOR,), start=patch.start),
        Phase(adversarial, trains=coder, start=patch.start, exact=exact),
    )


def add_perceptual_losses(
    loss: Float[Tensor, " b"],
    x: Float[Tensor, "b c h w"],
    y: Float[Tensor, "b c h w"],
    perceptual: PerceptualConfig | None,
    features: Features | None,
    patch: PatchConfig | None,
    discriminator: nn.Module | None,
) -> tuple[Float[Tensor, " b"], dict[str, Float[Tensor, " b"]]]:
    """The loss with the weighted terms beside it, and each term to log.

    x, y: the images and their reconstructions. discriminator: None in a phase without it.
    """
    terms = {}
    if perceptual is not None:
        assert features is not None, "training has asked for the feature network"
        terms["perceptual"] = perceptual_distance(features, x, y)
        loss = loss + perceptual.weight * terms["perceptual"]
    if patch is not None and discriminator is not None:
        terms["patch_generator"] = patch_generator_loss(discriminator, y)
        loss = loss + patch.weight * terms["patch_generator"]
    return loss, terms


def check_channels(shape: ImageShape) -> None:
    """Raises UserError for images that are neither gray nor RGB, which feature networks need."""
    if shape.channels not in (1, 3):
        raise UserError(
            f"stage.perceptual takes gray or RGB images, and data.channels is {shape.channels}; leave it out"
        )


def perceptual_distance(
    features: Features, x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]
) -> Float[Tensor, " b"]:
    """The mean over layers and places of ‖f(x) - f(y)‖², f being the features at a place scaled to unit length.

    x, y: gray or RGB images in [-1, 1]. Gradients flow to y alone. It is the distance of Zhang et al. 2018, eq. 1, with
    all of its weights alike, and a mean over layers, so that it lies in [0, 4] whatever the network.
    """
    # In full precision: late in training the two differ only a little.
    with torch.autocast(x.device.type, enabled=False), float32_products(tf32=False):
        with torch.no_grad():
            wanted = [_unit(f) for f in features(_rgb(x.float()))]
        found = [_unit(f) for f in features(_rgb(y.float()))]
        layers = [reduce((a - b).square(), "b c h w -> b h w", "sum") for a, b in zip(wanted, found, strict=True)]
        return torch.stack([reduce(d, "b h w -> b", "mean") for d in layers]).mean(0)


def patch_discriminator_loss(
    discriminator: Callable[[Tensor], Tensor], real: Float[Tensor, "b c h w"], fake: Float[Tensor, "b c h w"]
) -> tuple[Float[Tensor, " b"], dict[str, Float[Tensor, " b"]]]:
    """The patch discriminator's hinge loss of each pair of images, a mean over patches, and the mean logits of both.

    discriminator: images to a logit for each patch [n h w]. It is called once, with the real images above the others.
    """
    logits = discriminator(torch.cat([real, fake]))
    at_real, at_fake = rearrange(logits, "(two b) h w -> two (b h w)", two=2)
    losses = discriminator_loss("hinge", at_real, at_fake)
    means = reduce(logits.detach(), "(two b) h w -> two b", "mean", two=2)
    return _over_patches(losses, len(real)), {"real": means[0], "fake": means[1]}


def patch_generator_loss(
    discriminator: Callable[[Tensor], Tensor], fake: Float[Tensor, "b c h w"]
) -> Float[Tensor, " b"]:
    """The loss of each reconstruction against the patch discriminator, a mean over patches."""
    logits = discriminator(fake).flatten()
    return _over_patches(generator_loss("hinge", logits, logits), len(fake))


def _over_patches(losses: Float[Tensor, " n"], b: int) -> Float[Tensor, " b"]:
    return reduce(losses, "(b n) -> b", "mean", b=b)


def _rgb(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h w"]:
    return repeat(x, "b 1 h w -> b 3 h w") if x.shape[1] == 1 else x


def _unit(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    # Not by a norm, whose derivative where all features are zero is not finite.
    return features * torch.rsqrt(reduce(features.square(), "b c h w -> b 1 h w", "sum") + 1e-8)
