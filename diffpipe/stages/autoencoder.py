"""The autoencoder stage, trained by the squared error of its reconstructions. Denoising is an option."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from einops import reduce
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor, nn

from diffpipe.config import Config
from diffpipe.interfaces import Batch, ImageShape, Loss, Phase, Score
from diffpipe.nn.autoencoder import CoderConfig, Decoder, Encoder
from diffpipe.rng import KeyedRNG
from diffpipe.stages.codec import PixelCodec
from diffpipe.stages.config import StageConfig


class AutoencoderConfig(StageConfig):
    """A convolutional autoencoder. With noise it is a denoising one (Vincent et al. 2008)."""

    generates: ClassVar[bool] = False

    kind: Literal["autoencoder"]
    """A convolutional autoencoder, trained by the squared error."""
    network: CoderConfig = CoderConfig()
    """The encoder and the decoder."""
    noise: float = Field(default=0.0, ge=0)
    """Standard deviation of the noise on the input in training, for pixels in [-1, 1]. The target stays clean."""
    sampler: Config = Config()
    """Has no keys: an autoencoder does not sample."""

    def build(self, shape: ImageShape, dependencies: Mapping[str, Any] | None = None) -> Autoencoder:
        """The stage for images of this shape. Raises UserError where they do not fit each other."""
        return Autoencoder(self, shape)


class Autoencoder:
    """A `Stage` that reconstructs, encodes and scores. The noise on its input is keyed by the samples' positions."""

    normal_latents = False

    def __init__(self, config: AutoencoderConfig, shape: ImageShape):
        self.config = config
        self.shape = shape
        self.codec = PixelCodec()
        self.latent_shape = config.network.latent_shape(shape.resolution)

    def networks(self) -> dict[str, nn.Module]:
        config, (channels, resolution, _) = self.config.network, self.shape
        return {
            "encoder": Encoder(config, channels, resolution, outputs=config.latent_channels),
            "decoder": Decoder(config, resolution, outputs=channels),
        }

    def phases(self) -> Sequence[Phase]:
        return (Phase("reconstruct", trains=("encoder", "decoder")),)

    def loss(self, phase: Phase, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Loss:
        x = self.codec.encode(batch.images)
        seen = x + self.config.noise * rng.normal("corruption", x.shape[1:]) if self.config.noise else x
        return Loss(squared_error(x, self.decode(nets, nets["encoder"](seen))))

    def encode(self, nets: Mapping[str, nn.Module], images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c_z h_z w_z"]:
        """The latents of clean images, of `latent_shape`."""
        return nets["encoder"](self.codec.encode(images))

    def decode(self, nets: Mapping[str, nn.Module], z: Float[Tensor, "b c_z h_z w_z"]) -> Float[Tensor, "b c h w"]:
        """The images of latents, float32 for pixels in [-1, 1]."""
        return nets["decoder"](z).float()

    @torch.no_grad()
    def reconstruct(
        self, nets: Mapping[str, nn.Module], images: UInt8[Tensor, "b c h w"], rng: KeyedRNG
    ) -> UInt8[Tensor, "b c h w"]:
        return self.codec.decode(self.decode(nets, self.encode(nets, images)))

    @torch.no_grad()
    def encode_latents(
        self,
        nets: Mapping[str, nn.Module],
        images: UInt8[Tensor, "b c h w"],
        labels: Int[Tensor, " b"] | None,
        rng: KeyedRNG,
    ) -> Float[Tensor, "b c_z h_z w_z"]:
        return self.encode(nets, images).float()

    @torch.no_grad()
    def decode_latents(
        self, nets: Mapping[str, nn.Module], z: Float[Tensor, "b c_z h_z w_z"], labels: Int[Tensor, " b"] | None
    ) -> UInt8[Tensor, "b c h w"]:
        return self.codec.decode(self.decode(nets, z))

    @torch.no_grad()
    def score(self, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Score:
        again = self.decode(nets, self.encode(nets, batch.images))
        return Score(squared_error(self.codec.encode(batch.images), again), unit="mse", kind="error")


def squared_error(x: Float[Tensor, "b c h w"], again: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """The mean over an image's pixels of (x - again)^2."""
    return reduce((x - again).square(), "b c h w -> b", "mean")
