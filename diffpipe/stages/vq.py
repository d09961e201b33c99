"""The vector-quantized autoencoder: images as maps of codes, which an autoregressive model can learn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int, UInt8
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffpipe.config import Config
from diffpipe.config.kinds import default_kind
from diffpipe.dependency import Dependency
from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, ImageShape, Loss, Phase, Score
from diffpipe.nn.autoencoder import CoderConfig, Decoder, Encoder
from diffpipe.nn.codebook import EMAQuantizer, EMAQuantizerConfig
from diffpipe.nn.patch import PatchDiscriminator
from diffpipe.nn.quantizer import FSQConfig, FSQuantizer, Quantized, Quantizer
from diffpipe.plural import plural
from diffpipe.resolution import Resolution
from diffpipe.rng import KeyedRNG
from diffpipe.stages.autoencoder import squared_error
from diffpipe.stages.codec import PixelCodec
from diffpipe.stages.config import StageConfig
from diffpipe.stages.likelihood import bits_per_dim, bounded_log_scale, discretized_logistic
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

ENCODER, QUANTIZER, DECODER = "encoder", "quantizer", "decoder"
ADVERSARIAL = "reconstruct_adversarial"
_START_IMAGES = 256
_CHUNK = 64


class VQConfig(StageConfig):
    """Vector-quantized autoencoder (van den Oord et al. 2017; with a discriminator, Esser et al. 2021)."""

    generates: ClassVar[bool] = False

    kind: Literal["vq"]
    """A vector-quantized autoencoder, whose codes an autoregressive model can learn."""
    network: CoderConfig = CoderConfig()
    """The encoder and the decoder. latent_channels is the length of a code's vector."""
    quantizer: Annotated[EMAQuantizerConfig | FSQConfig, Field(discriminator="kind"), default_kind("ema")] = (
        EMAQuantizerConfig()
    )
    """How latents become codes."""
    reconstruction: Literal["mse", "logistic"] = "mse"
    """The reconstruction loss: the mean squared error of pixels in [-1, 1], or the negative log-likelihood under the
    VAE's discretized logistic distribution, in bits/dim."""
    perceptual: PerceptualConfig | None = None
    """A perceptual loss beside the reconstruction loss; null: none."""
    patch: PatchConfig | None = None
    """A patch discriminator beside the reconstruction loss; null: none."""
    sampler: Config = Config()
    """Has no keys: a vector-quantized autoencoder does not sample."""

    def describe(self) -> str:
        return f"vq ({self.quantizer.kind})"

    def dependencies(self) -> Sequence[Dependency]:
        return perceptual_dependencies(self.perceptual)

    def build(self, shape: ImageShape, dependencies: Mapping[str, Any] | None = None) -> VQ:
        """The stage for images of this shape. Raises UserError where they do not fit each other.

        dependencies: "features", the network of the perceptual loss. A stage that has one cannot train without it.
        """
        return VQ(self, shape, (dependencies or {}).get("features"))


class VQ:
    """A `Stage` that reconstructs, encodes and scores. It draws nothing but the vectors at which unused codes restart.

    latent_shape: [c h w] of the latents. sizes: height and width of the maps of codes, one for each scale. tokens: the
    number of codes of an image. codes: the size of the codebook.
    """

    normal_latents = False

    def __init__(self, config: VQConfig, shape: ImageShape, features: Features | None = None):
        self.config = config
        self.shape = shape
        self.codec = PixelCodec()
        self.features = features
        _check(config)
        if config.perceptual is not None:
            check_channels(shape)
        self.latent_shape = config.network.latent_shape(shape.resolution)
        self.latents = Resolution(*self.latent_shape[1:])
        self.codes = config.quantizer.codes
        with torch.device("meta"):
            self.sizes = cast(Quantizer, self.networks()[QUANTIZER]).sizes(self.latents)
        self.tokens = sum(size.pixels for size in self.sizes)

    def networks(self) -> dict[str, nn.Module]:
        config, (channels, resolution, _) = self.config.network, self.shape
        outputs = 2 * channels if self.config.reconstruction == "logistic" else channels
        quantizer = self.config.quantizer
        nets: dict[str, nn.Module] = {
            ENCODER: Encoder(config, channels, resolution, outputs=config.latent_channels),
            QUANTIZER: FSQuantizer(quantizer)
            if isinstance(quantizer, FSQConfig)
            else EMAQuantizer(quantizer, config.latent_channels),
            DECODER: Decoder(config, resolution, outputs),
        }
        if self.config.patch is not None:
            nets[DISCRIMINATOR] = PatchDiscriminator(self.config.patch.network, channels, resolution)
        return nets

    def phases(self) -> Sequence[Phase]:
        config = self.config
        return coder_phases("reconstruct", ADVERSARIAL, (ENCODER, DECODER), config.perceptual, config.patch)

    def quantize(self, nets: Mapping[str, nn.Module], images: UInt8[Tensor, "b c h w"]) -> Quantized:
        """The codes of images, and their vectors."""
        return nets[QUANTIZER](nets[ENCODER](self.codec.encode(images)))

    def decode(self, nets: Mapping[str, nn.Module], z: Float[Tensor, "b c_z h_z w_z"]) -> Float[Tensor, "b c h w"]:
        """The images of latents, float32 for pixels in [-1, 1]."""
        return self._decoded(nets, z)[0]

    def embed(self, nets: Mapping[str, nn.Module], codes: Int[Tensor, "b n"]) -> Float[Tensor, "b c_z h_z w_z"]:
        """The quantized latents of codes."""
        return cast(Quantizer, nets[QUANTIZER]).embed(codes, self.latents)

    def loss(self, phase: Phase, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Loss:
        x = self.codec.encode(batch.images)
        if phase.name == DISCRIMINATOR:
            with torch.no_grad():
                y = self.decode(nets, self.quantize(nets, batch.images).latents)
            return Loss(*patch_discriminator_loss(nets[DISCRIMINATOR], x, y))
        config, quantizer = self.config, cast(Quantizer, nets[QUANTIZER])
        quantized = self.quantize(nets, batch.images)
        y, log_scale = self._decoded(nets, quantized.latents)
        error = squared_error(x, y) if log_scale is None else self._bits(batch.images, y, log_scale)
        metrics = {"reconstruction": error}
        total = error
        if isinstance(config.quantizer, EMAQuantizerConfig):
            metrics["commitment"] = quantized.commitment
            total = error + config.quantizer.commitment * quantized.commitment
        discriminator = nets[DISCRIMINATOR] if phase.name == ADVERSARIAL else None
        total, terms = add_perceptual_losses(total, x, y, config.perceptual, self.features, config.patch, discriminator)
        # The same value for each sample, so that the mean over samples is that value.
        usage = {name: value.expand(len(x)) for name, value in quantizer.usage()._asdict().items()}
        return Loss(total, metrics | terms | usage, quantizer.sums(quantized, batch.valid, rng))

    def track(
        self, phase: Phase, nets: Mapping[str, nn.Module], sums: Mapping[str, Tensor], taken: Bool[Tensor, ""]
    ) -> None:
        cast(Quantizer, nets[QUANTIZER]).update(sums, taken)

    @property
    def start_samples(self) -> int:
        """A codebook starts from encoded images; FSQ has nothing to set."""
        return _START_IMAGES if isinstance(self.config.quantizer, EMAQuantizerConfig) else 0

    def start(self, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> None:
        """Set the codebook to vectors of the images, drawn at random."""
        quantizer = cast(EMAQuantizer, nets[QUANTIZER])
        images = batch.images if batch.valid is None else batch.images[batch.valid]
        if not len(images):
            return
        x = self.codec.encode(images)
        z = torch.cat([nets[ENCODER](part).float() for part in x.split(_CHUNK)])
        z = F.normalize(z, dim=1) if quantizer.config.normalize else z
        drawn = KeyedRNG(rng.seed, torch.arange(self.codes, device=z.device))
        quantizer.start(rearrange(z, "b c h w -> (b h w) c"), drawn)

    @torch.no_grad()
    def reconstruct(
        self, nets: Mapping[str, nn.Module], images: UInt8[Tensor, "b c h w"], rng: KeyedRNG
    ) -> UInt8[Tensor, "b c h w"]:
        return self.codec.decode(self.decode(nets, self.quantize(nets, images).latents))

    @torch.no_grad()
    def encode_latents(
        self,
        nets: Mapping[str, nn.Module],
        images: UInt8[Tensor, "b c h w"],
        labels: Int[Tensor, " b"] | None,
        rng: KeyedRNG,
    ) -> Float[Tensor, "b c_z h_z w_z"]:
        """The quantized latents."""
        return self.quantize(nets, images).latents

    @torch.no_grad()
    def decode_latents(
        self, nets: Mapping[str, nn.Module], z: Float[Tensor, "b c_z h_z w_z"], labels: Int[Tensor, " b"] | None
    ) -> UInt8[Tensor, "b c h w"]:
        """The images of latents, quantized or not."""
        return self.codec.decode(self.decode(nets, z))

    @torch.no_grad()
    def score(self, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Score:
        y = self.decode(nets, self.quantize(nets, batch.images).latents)
        return Score(squared_error(self.codec.encode(batch.images), y), unit="mse", kind="error")

    def _decoded(
        self, nets: Mapping[str, nn.Module], z: Float[Tensor, "b c_z h_z w_z"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"] | None]:
        """The images, and with a logistic distribution its log-scale."""
        y = nets[DECODER](z).float()
        if self.config.reconstruction == "mse":
            return y, None
        mean, raw = y.chunk(2, dim=1)
        return mean, bounded_log_scale(raw)

    def _bits(self, images: Tensor, mean: Tensor, log_scale: Tensor) -> Float[Tensor, " b"]:
        nats = -reduce(discretized_logistic(images, mean, log_scale), "b c h w -> b", "sum")
        return bits_per_dim(nats, math.prod(self.shape.chw))


def _check(config: VQConfig) -> None:
    """Raise UserError where the network's latents do not fit the quantizer."""
    if config.network.latent != "spatial":
        raise UserError("stage.kind=vq quantizes spatial latents; set stage.network.latent=spatial")
    quantizer, channels = config.quantizer, config.network.latent_channels
    if isinstance(quantizer, FSQConfig) and len(quantizer.levels) != channels:
        raise UserError(
            f"stage.quantizer.levels are of {plural(len(quantizer.levels), 'channel')}, and "
            f"stage.network.latent_channels is {channels}; make them equal"
        )
