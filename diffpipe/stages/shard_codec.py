"""The codecs that encode shards: a VAE's, to latents, and a vector-quantized autoencoder's, to codes."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from jaxtyping import UInt8
from torch import Tensor

from diffpipe.dependency import TrainedStage
from diffpipe.errors import UserError
from diffpipe.interfaces import ImageShape
from diffpipe.stages.codes import code_codec
from diffpipe.stages.latents import latent_codec
from diffpipe.stages.vae import VAE
from diffpipe.stages.vq import VQ


@runtime_checkable
class ShardCodec(Protocol):
    """Encodes images for shards. images: the shape of those that it encodes."""

    images: ImageShape

    @property
    def encoded(self) -> tuple[str, dict[str, Any]]:
        """The code of an image in words that follow `as`, and as values for --json."""
        ...

    def describe(self, images: UInt8[Tensor, "b c h w"]) -> Tensor:
        """All that encoding depends on, for a shard, one row per image."""
        ...


def shard_codec(trained: TrainedStage) -> ShardCodec:
    """The codec that a trained run makes. Raises UserError where it makes none."""
    if not isinstance(trained.stage, VAE | VQ):
        raise UserError(
            f"{trained.path.parents[1]} is a run of stage.kind={trained.config.kind}, which encodes no shards; give "
            f"one of stage.kind=vae with spatial latents, or of stage.kind=vq"
        )
    return code_codec(trained) if isinstance(trained.stage, VQ) else latent_codec(trained)
