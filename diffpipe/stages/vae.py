"""The variational autoencoder: trained and scored by a bound on the likelihood of images, in bits/dim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from einops import reduce
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor, nn

from diffpipe.config import Config
from diffpipe.dependency import Dependency
from diffpipe.interfaces import Batch, ImageShape, Loss, Phase, Score
from diffpipe.nn.autoencoder import CoderConfig, Decoder, Encoder
from diffpipe.nn.patch import PatchDiscriminator
from diffpipe.rng import RNG, KeyedRNG
from diffpipe.stages.codec import PixelCodec
from diffpipe.stages.config import StageConfig
from diffpipe.stages.labels import conditional_classes, labels_to_generate, required_labels
from diffpipe.stages.likelihood import (
    bits_per_dim,
    bounded_log_scale,
    discretized_logistic,
    gaussian_log_density,
    importance_weighted,
    kl_to_standard_normal,
)
from diffpipe.stages.perceptual import (
    DISCRIMINATOR,
    Features,
    PatchConfig,
    PerceptualConfig,
    add_perceptual_losses,
    check_channels,
    coder_phases,
    patch_discriminator_loss,
    perceptual_dependencies,
)
from diffpipe.stages.vae_coding import VAECoder

ENCODER, DECODER = "encoder", "decoder"


class VAESamplerConfig(Config):
    """How a trained stage generates and scores. It may change after training."""

    temperature: float = Field(default=1.0, ge=0)
    """Standard deviation of the latents that are drawn; the prior's is 1."""
    mode: Literal["mean", "sample"] = "mean"
    """Show the mean of the decoder's distribution, or draw each pixel from it."""
    importance_samples: int = Field(default=1, ge=1)
    """Latents per image for the bound on its likelihood: 1 gives the ELBO, more the importance-weighted bound (Burda et
    al. 2016)."""


class VAEConfig(StageConfig):
    """Variational autoencoder (Kingma & Welling 2014)."""

    kind: Literal["vae"]
    """A variational autoencoder, whose latents a DDPM can diffuse."""
    network: CoderConfig = CoderConfig()
    """The encoder and the decoder."""
    beta: float = Field(default=1.0, ge=0)
    """Weight of the KL divergence in the loss: 1 is the ELBO (Higgins et al. 2017)."""
    free_bits: float = Field(default=0.0, ge=0)
    """Nats of KL divergence that each latent channel (all of its places together) has for free: the loss counts
    max(free_bits, KL) (Kingma et al. 2016, appendix C; here per image, not of the batch's mean)."""
    perceptual: PerceptualConfig | None = None
    """A perceptual loss beside the likelihood; null: none."""
    patch: PatchConfig | None = None
    """A patch discriminator beside the likelihood; null: none."""
    conditional: bool = False
    """Train P(X|Y) for the labels Y of the data, which needs data.labels=true."""
    sampler: VAESamplerConfig = VAESamplerConfig()
    """How the trained VAE samples and scores. It may change from one sampling to the next."""

    def dependencies(self) -> Sequence[Dependency]:
        return perceptual_dependencies(self.perceptual)

    def build(self, shape: ImageShape, dependencies: Mapping[str, Any] | None = None) -> VAE:
        """The stage for images of this shape. Raises UserError where they do not fit each other.

        dependencies: "features", the network of the perceptual loss. A stage that has one cannot train without it.
        """
        return VAE(self, shape, (dependencies or {}).get("features"))


class Posterior(NamedTuple):
    """q(z|x), a normal distribution for each number of the latents, float32."""

    mean: Float[Tensor, "b c_z h_z w_z"]
    log_variance: Float[Tensor, "b c_z h_z w_z"]


class Likelihood(NamedTuple):
    """p(x|z), a discretized logistic distribution for each pixel in [-1, 1], float32."""

    mean: Float[Tensor, "b c h w"]
    log_scale: Float[Tensor, "b c h w"]


class VAE:
    """A `Stage` that generates, reconstructs, encodes and scores. The noise of the latents is keyed by position."""

    normal_latents = True
    generating = (DECODER,)

    def __init__(self, config: VAEConfig, shape: ImageShape, features: Features | None = None):
        self.classes = conditional_classes(config.conditional, shape)
        self.config = config
        self.shape = shape
        self.codec = PixelCodec()
        self.latent_shape = config.network.latent_shape(shape.resolution)
        self.dims = shape.channels * shape.resolution.pixels
        self.features = features
        if config.perceptual is not None:
            check_channels(shape)
        with torch.device("meta"):
            self.networks()  # what cannot be built is refused here, before any job has started

    def networks(self) -> dict[str, nn.Module]:
        config, (channels, resolution, _) = self.config.network, self.shape
        nets: dict[str, nn.Module] = {
            ENCODER: Encoder(config, channels, resolution, 2 * config.latent_channels, self.classes),
            DECODER: Decoder(config, resolution, 2 * channels, self.classes),
        }
        if self.config.patch is not None:
            nets[DISCRIMINATOR] = PatchDiscriminator(self.config.patch.network, channels, resolution)
        return nets

    def phases(self) -> Sequence[Phase]:
        """With a discriminator, the autoencoder's update changes to another phase at the discriminator's first step."""
        config = self.config
        return coder_phases("bound", "adversarial", (ENCODER, DECODER), config.perceptual, config.patch)

    def encode(
        self, nets: Mapping[str, nn.Module], images: UInt8[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None = None
    ) -> Posterior:
        """q(z|x), of `latent_shape`. A class-conditional stage needs the labels."""
        mean, log_variance = nets["encoder"](self.codec.encode(images), labels).float().chunk(2, dim=1)
        return Posterior(mean, log_variance.clamp(-30, 20))

    def decode(
        self,
        nets: Mapping[str, nn.Module],
        z: Float[Tensor, "b c_z h_z w_z"],
        labels: Int[Tensor, " b"] | None = None,
    ) -> Likelihood:
        """p(x|z), whose mean is the image. A class-conditional stage needs the labels."""
        mean, raw = nets["decoder"](z, labels).float().chunk(2, dim=1)
        return Likelihood(mean, bounded_log_scale(raw))

    def loss(self, phase: Phase, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Loss:
        if phase.name == DISCRIMINATOR:
            return self._patch_discriminator_loss(nets, batch, rng)
        labels = required_labels(self.classes, batch.labels)
        q = self.encode(nets, batch.images, labels)
        z = reparameterize(q, rng.normal("posterior", self.latent_shape))
        p = self.decode(nets, z, labels)
        reconstruction = -_log_likelihood(batch.images, p)
        kl = reduce(kl_to_standard_normal(*q), "b c h w -> b c", "sum")
        counted = kl.clamp(min=self.config.free_bits) if self.config.free_bits else kl
        total = bits_per_dim(reconstruction + self.config.beta * counted.sum(1), self.dims)
        metrics = {
            "reconstruction": bits_per_dim(reconstruction, self.dims),
            "kl": bits_per_dim(kl.sum(1), self.dims),
        }
        config, x = self.config, self.codec.encode(batch.images)
        discriminator = nets[DISCRIMINATOR] if phase.name == "adversarial" else None
        total, terms = add_perceptual_losses(
            total, x, p.mean, config.perceptual, self.features, config.patch, discriminator
        )
        return Loss(total, metrics | terms)

    def _patch_discriminator_loss(self, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Loss:
        labels = required_labels(self.classes, batch.labels)
        with torch.no_grad():
            q = self.encode(nets, batch.images, labels)
            z = reparameterize(q, rng.normal(f"posterior/{DISCRIMINATOR}", self.latent_shape))
            fake = self.decode(nets, z, labels).mean
        return Loss(*patch_discriminator_loss(nets[DISCRIMINATOR], self.codec.encode(batch.images), fake))

    def evaluations(self) -> int | None:
        return 1

    @torch.no_grad()
    def generate(
        self, nets: Mapping[str, nn.Module], rng: RNG, labels: Int[Tensor, " b"] | None
    ) -> UInt8[Tensor, "b c h w"]:
        """An image for each position. A class-conditional stage without labels draws them uniformly."""
        labels = labels_to_generate(self.classes, labels, rng)
        z = self.config.sampler.temperature * rng.normal("latent", self.latent_shape)
        mean, log_scale = self.decode(nets, z, labels)
        if self.config.sampler.mode == "mean":
            return self.codec.decode(mean)
        u = rng.uniform("pixel", mean.shape[1:])
        # A logistic draw, rounded and clamped to a pixel's values, has the bins' probabilities exactly.
        return self.codec.decode(mean + torch.exp(log_scale) * torch.logit(u))

    @torch.no_grad()
    def reconstruct(
        self, nets: Mapping[str, nn.Module], images: UInt8[Tensor, "b c h w"], rng: KeyedRNG
    ) -> UInt8[Tensor, "b c h w"]:
        """Each image decoded from its posterior mean. A class-conditional stage takes the likeliest label."""
        labels = self._likeliest(nets, images, rng) if self.classes else None
        return self.codec.decode(self.decode(nets, self.encode(nets, images, labels).mean, labels).mean)

    @torch.no_grad()
    def encode_latents(
        self,
        nets: Mapping[str, nn.Module],
        images: UInt8[Tensor, "b c h w"],
        labels: Int[Tensor, " b"] | None,
        rng: KeyedRNG,
    ) -> Float[Tensor, "b c_z h_z w_z"]:
        """The posterior means."""
        return self.encode(nets, images, required_labels(self.classes, labels)).mean

    @torch.no_grad()
    def decode_latents(
        self, nets: Mapping[str, nn.Module], z: Float[Tensor, "b c_z h_z w_z"], labels: Int[Tensor, " b"] | None
    ) -> UInt8[Tensor, "b c h w"]:
        """The means of the decoder's distributions."""
        return self.codec.decode(self.decode(nets, z, required_labels(self.classes, labels)).mean)

    @torch.no_grad()
    def score(self, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Score:
        """-ELBO or the importance-weighted bound on -log P(X); on -log P(X|Y) where the stage is class-conditional.

        Raises UserError where the labels for that are missing.
        """
        labels = required_labels(self.classes, batch.labels)
        nats = self._bound(nets, batch.images, labels, rng)
        terms = {name: bits_per_dim(value, self.dims) for name, value in nats.items()}
        return Score(torch.stack([*terms.values()]).sum(0), unit="bits/dim", kind="bound", terms=terms)

    def image_coder(self, nets: Mapping[str, nn.Module]) -> VAECoder:
        """Lossless coding by bits-back, in about as many bits as the ELBO says."""
        return VAECoder(self, nets)

    def _bound(
        self, nets: Mapping[str, nn.Module], images: Tensor, labels: Tensor | None, rng: KeyedRNG
    ) -> dict[str, Float[Tensor, " b"]]:
        """The terms of the bound on -log p(x), in nats."""
        q = self.encode(nets, images, labels)
        reconstructions, log_weights = [], []
        for k in range(self.config.sampler.importance_samples):
            z = reparameterize(q, rng.normal("score", self.latent_shape, stream=k))
            log_likelihood = _log_likelihood(images, self.decode(nets, z, labels))
            prior = gaussian_log_density(z, torch.zeros_like(z), torch.zeros_like(z))
            log_weights.append(log_likelihood + _sum(prior - gaussian_log_density(z, *q)))
            reconstructions.append(-log_likelihood)
        terms = {"reconstruction": torch.stack(reconstructions).mean(0), "kl": _sum(kl_to_standard_normal(*q))}
        if len(log_weights) > 1:  # the gain over the ELBO, which is the sum of the terms before
            gained = -importance_weighted(torch.stack(log_weights)) - terms["reconstruction"] - terms["kl"]
            terms["importance"] = gained
        return terms

    def _likeliest(self, nets: Mapping[str, nn.Module], images: Tensor, rng: KeyedRNG) -> Int[Tensor, " b"]:
        bounds = []
        for label in range(self.classes):
            labels = torch.full((len(images),), label, device=images.device)
            bounds.append(sum(self._bound(nets, images, labels, rng).values()))
        return torch.stack(bounds).argmin(0)


def reparameterize(q: Posterior, eps: Float[Tensor, "b c_z h_z w_z"]) -> Float[Tensor, "b c_z h_z w_z"]:
    """z ~ q(z|x) as a differentiable function of standard normal eps (Kingma & Welling 2014, section 2.4)."""
    return q.mean + torch.exp(0.5 * q.log_variance) * eps


def _log_likelihood(images: UInt8[Tensor, "b c h w"], p: Likelihood) -> Float[Tensor, " b"]:
    return _sum(discretized_logistic(images, p.mean, p.log_scale))


def _sum(x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    return reduce(x, "b c h w -> b", "sum")
