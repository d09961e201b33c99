"""Codecs: from uint8 images to the input of a stage's network, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor, nn

from diffpipe.config import Config
from diffpipe.errors import UserError
from diffpipe.interfaces import ImageShape
from diffpipe.rng import KeyedRNG


class PixelCodecConfig(Config):
    """The network sees the pixels themselves."""

    kind: Literal["pixels"] = "pixels"
    """Pixels, scaled to [-1, 1]."""


class VAECodecConfig(Config):
    """The network sees the latents of a trained VAE (Rombach et al. 2022)."""

    kind: Literal["vae"]
    """The latents of a trained VAE with spatial latents."""
    run: str
    """The VAE's run directory, or one checkpoint in it."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """SHA-256 of the manifest.json of the VAE's checkpoint; null: the newest one when training starts, which the run
    then keeps."""


CodecConfig = Annotated[PixelCodecConfig | VAECodecConfig, Field(discriminator="kind")]


@runtime_checkable
class Codec(Protocol):
    """Maps images to codes and back. It is frozen: nothing in it is trained, averaged or saved with the stage.

    latent: whether codes are latents: without a range to clip to, without a likelihood of images, and of any scale.
    """

    latent: bool

    @property
    def scale(self) -> tuple[Sequence[float], Sequence[float]] | None:
        """Mean and standard deviation of each channel of the codes, where they are known beforehand."""
        ...

    @property
    def nets(self) -> Mapping[str, nn.Module]:
        """Its networks by name."""
        ...

    @property
    def decoding(self) -> Sequence[str]:
        """The names of the networks that `decode` runs."""
        ...

    def shape(self, images: ImageShape) -> tuple[int, int, int]:
        """[c h w] of the codes of images of this shape. Raises UserError where it cannot encode such images."""
        ...

    def encode(
        self, images: UInt8[Tensor, "b c h w"] | Float[Tensor, "b c2_z h_z w_z"], rng: KeyedRNG
    ) -> Float[Tensor, "b c_z h_z w_z"]:
        """The codes of images or of shards' latents, float32. All randomness comes from `rng`."""
        ...

    def decode(self, x: Float[Tensor, "b c_z h_z w_z"]) -> UInt8[Tensor, "b c h w"]:
        """The images of codes."""
        ...


class PixelCodec:
    """The identity codec: the network sees the pixels themselves, scaled from 0..255 to [-1, 1]."""

    latent = False
    scale = None
    decoding = ()

    @property
    def nets(self) -> Mapping[str, nn.Module]:
        return {}

    def shape(self, images: ImageShape) -> tuple[int, int, int]:
        return images.chw

    def encode(self, images: UInt8[Tensor, "b c h w"], rng: KeyedRNG | None = None) -> Float[Tensor, "b c h w"]:
        """Nothing is drawn."""
        return images.float() / 127.5 - 1

    def decode(self, x: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
        return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def require_pixels(codec: Codec) -> None:
    """Raise UserError where latents are diffused: their density is no likelihood of images."""
    if codec.latent:
        raise UserError(
            "this run diffuses the latents of a VAE, and their density is no likelihood of images; score its VAE, or a "
            "run with stage.codec.kind=pixels"
        )
