"""The GAN stage: a generator from a latent vector and a discriminator, by the rules of R3GAN.

Huang et al. 2024 ("The GAN is dead; long live the GAN!") show that the relativistic loss and the two zero-centred
gradient penalties suffice for stable training, without minibatch statistics or other tricks. Their networks have no
normalization either; these have it within each sample, and learn from far fewer images: at 48,000 of Fashion-MNIST's
they have less than half the Frechet distance that networks without had at 64,000.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor, nn

from diffpipe.config import Config
from diffpipe.interfaces import Batch, ImageShape, Loss, Phase
from diffpipe.nn.discriminator import Discriminator, DiscriminatorConfig
from diffpipe.nn.generator import Generator, GeneratorConfig
from diffpipe.rng import RNG, KeyedRNG
from diffpipe.stages.codec import PixelCodec
from diffpipe.stages.config import StageConfig
from diffpipe.stages.gan_losses import DISCRIMINATOR, GENERATOR, AdversarialLossConfig, adversarial_loss
from diffpipe.stages.labels import conditional_classes, labels_to_generate, repeated


class LatentSamplerConfig(Config):
    """How a trained stage generates. It may change at every sampling, and does not belong to the checkpoint."""

    temperature: float = Field(default=1.0, ge=0)
    """Standard deviation of the latents. Training has 1; less gives more typical images in less variety."""


class GANConfig(AdversarialLossConfig, StageConfig):
    """A generative adversarial network (Goodfellow et al. 2014)."""

    kind: Literal["gan"]
    """A generative adversarial network by the rules of R3GAN (Huang et al. 2024)."""
    generator: GeneratorConfig = GeneratorConfig()
    """The network from a latent vector to an image."""
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    """The network from an image to a logit, high for a real image."""
    sampler: LatentSamplerConfig = LatentSamplerConfig()
    """How the trained generator samples. It may change from one sampling to the next."""
    conditional: bool = False
    """Train P(X|Y) for the labels Y of the data, which needs data.labels=true."""

    def build(self, shape: ImageShape, dependencies: Mapping[str, Any] | None = None) -> GAN:
        """The stage for images of this shape. Raises UserError where they do not fit each other."""
        return GAN(self, shape)


class GAN:
    """A `Stage`. Latents are keyed by the samples' positions, separately in each phase."""

    generating = (GENERATOR,)

    def __init__(self, config: GANConfig, shape: ImageShape):
        self.config = config
        self.shape = shape
        self.classes = conditional_classes(config.conditional, shape)
        self.codec = PixelCodec()
        with torch.device("meta"):
            self.networks()  # what cannot be built is refused here, before any job has started

    def networks(self) -> dict[str, nn.Module]:
        channels, resolution, _ = self.shape
        return {
            GENERATOR: Generator(self.config.generator, channels, resolution, self.classes),
            DISCRIMINATOR: Discriminator(self.config.discriminator, channels, resolution, self.classes),
        }

    def phases(self) -> Sequence[Phase]:
        return self.config.phases()

    def loss(self, phase: Phase, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Loss:
        labels = batch.labels if self.classes else None

        def generate() -> Float[Tensor, "b c h w"]:
            z = rng.normal(f"latent/{phase.name}", (self.config.generator.latent,))
            return nets[GENERATOR](z, labels).float()

        def discriminator(images: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
            return nets[DISCRIMINATOR](images, repeated(labels, len(images)))

        return adversarial_loss(self.config, phase, discriminator, self.codec.encode(batch.images), generate)

    def evaluations(self) -> int | None:
        return 1

    @torch.no_grad()
    def generate(
        self, nets: Mapping[str, nn.Module], rng: RNG, labels: Int[Tensor, " b"] | None
    ) -> UInt8[Tensor, "b c h w"]:
        z = self.config.sampler.temperature * rng.normal("latent", (self.config.generator.latent,))
        return self.codec.decode(nets[GENERATOR](z, labels_to_generate(self.classes, labels, rng)).float())
