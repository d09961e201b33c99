"""The codec of latent diffusion, made of a trained VAE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from diffpipe.dependency import TrainedStage
from diffpipe.errors import UserError
from diffpipe.interfaces import ImageShape
from diffpipe.rng import KeyedRNG
from diffpipe.stages.vae import VAE, Posterior, reparameterize


class LatentCodec:
    """A `Codec`: codes are samples of a frozen VAE's q(z|x).

    The noise of a sample is keyed by its position ("codec"): fresh each time that an image comes round, and the same on
    any process. scale: mean and standard deviation of each channel where the VAE's checkpoint has them (format 1).
    images: the shape of those that it encodes.
    """

    latent = True
    decoding = ("decoder",)

    def __init__(self, vae: VAE, nets: Mapping[str, nn.Module], scale: tuple[Sequence[float], Sequence[float]] | None):
        """nets: the VAE's averaged networks, placed."""
        assert codec_problem(vae) is None, "the caller has asked"
        self.vae = vae
        self.images = vae.shape
        self.nets = {name: net.requires_grad_(False).eval() for name, net in nets.items()}
        self.scale = scale

    @property
    def encoded(self) -> tuple[str, dict[str, Any]]:
        """As `ShardCodec` has it."""
        shape = self.vae.latent_shape
        return f"latents of {'x'.join(map(str, shape))}", {"latent_shape": shape}

    def shape(self, images: ImageShape) -> tuple[int, int, int]:
        ours = self.images
        if (ours.channels, ours.resolution) != (images.channels, images.resolution):
            raise UserError(
                f"stage.codec: its VAE takes images of {' × '.join(map(str, ours.chw))}, and "
                f"data.channels is {images.channels} and data.resolution {images.resolution}; make them the VAE's"
            )
        return self.vae.latent_shape

    @torch.no_grad()
    def encode(
        self, images: UInt8[Tensor, "b c h w"] | Float[Tensor, "b c2_z h_z w_z"], rng: KeyedRNG
    ) -> Float[Tensor, "b c_z h_z w_z"]:
        """images: uint8 images, or the result of `describe`, which gives the same codes without the encoder."""
        q = self.describe(images) if images.dtype == torch.uint8 else images
        mean, log_variance = q.chunk(2, dim=1)
        return reparameterize(Posterior(mean, log_variance), rng.normal("codec", self.vae.latent_shape))

    @torch.no_grad()
    def describe(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c2_z h_z w_z"]:
        """Mean and log-variance of q(z|x), concatenated, float32: all that encoding depends on."""
        return torch.cat(self.vae.encode(self.nets, images), dim=1)

    @torch.no_grad()
    def decode(self, x: Float[Tensor, "b c_z h_z w_z"]) -> UInt8[Tensor, "b c h w"]:
        return self.vae.codec.decode(self.vae.decode(self.nets, x).mean)


def latent_codec(trained: TrainedStage) -> LatentCodec:
    """The codec that a trained run makes. Raises UserError where it makes none."""
    vae = trained.stage
    if not isinstance(vae, VAE):
        raise UserError(
            f"{trained.path} is a run of stage.kind={trained.config.kind}; give one of stage.kind=vae with spatial "
            f"latents"
        )
    problem = codec_problem(vae)
    if problem is not None:
        raise UserError(f"{trained.path}: {problem}")
    return LatentCodec(vae, trained.nets, trained.latents)


def codec_problem(vae: VAE) -> str | None:
    """The reason why this VAE cannot be a codec, or None."""
    if vae.classes:
        return "its VAE is class-conditional, so its latents need labels; train one with stage.conditional=false"
    if vae.config.network.latent != "spatial":
        return "its VAE has vector latents, no image to denoise; train one with stage.network.latent=spatial"
    return None
