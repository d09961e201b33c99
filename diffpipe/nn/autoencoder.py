"""A convolutional encoder and its mirror image, the decoder, with spatial or vector latents between them."""

from __future__ import annotations

from typing import Literal

import torch
from einops import repeat
from einops.layers.torch import Rearrange
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffpipe.nn.blocks import Downsample, ResBlock, Upsample
from diffpipe.nn.levels import NormalizedLevelsConfig, Positive
from diffpipe.resolution import Resolution

CHANNEL_MULT = "stage.network.channel_mult"


class CoderConfig(NormalizedLevelsConfig):
    """Width and depth of the encoder and the decoder, and the latents between them."""

    channels: Positive = 128
    """Channels at full resolution."""
    groups: Positive = 32
    """Groups of the group normalization; `channels` is a multiple of it."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout rate in the residual blocks."""
    latent: Literal["spatial", "vector"] = "spatial"
    """spatial: latents of the lowest level's height and width. vector: one vector per image, by a linear layer."""
    latent_channels: Positive = 4
    """Numbers at each place of spatial latents, or the length of the vector."""

    def latent_shape(self, resolution: Resolution) -> tuple[int, int, int]:
        """[c h w] of the latents of images of this resolution; a vector is [c 1 1]. Raises UserError."""
        size = self.lowest(resolution, CHANNEL_MULT)
        return (
            (self.latent_channels, size.height, size.width)
            if self.latent == "spatial"
            else (self.latent_channels, 1, 1)
        )


class Encoder(nn.Module):
    """Maps images, and their labels where there are classes, to `outputs` numbers at each place of the latents.

    Raises UserError where the resolution cannot be halved for each level.
    """

    def __init__(self, config: CoderConfig, channels: int, resolution: Resolution, outputs: int, classes: int = 0):
        super().__init__()
        c, size = config.channels, config.lowest(resolution, CHANNEL_MULT)
        self.label = nn.Embedding(classes, config.channels) if classes else None
        self.stem = nn.Conv2d(channels, c, 3, padding=1)
        self.layers = nn.ModuleList()
        for level, mult in enumerate(config.channel_mult):
            if level:
                self.layers.append(Downsample(c))
            for _ in range(config.blocks):
                self.layers.append(_block(config, c, mult * config.channels, classes))
                c = mult * config.channels
        self.norm = nn.GroupNorm(config.groups, c)
        self.head = (
            nn.Conv2d(c, outputs, 3, padding=1)
            if config.latent == "spatial"
            else nn.Sequential(
                Rearrange("b c h w -> b (c h w)"), nn.Linear(c * size.pixels, outputs), Rearrange("b c -> b c 1 1")
            )
        )

    def blocks(self) -> list[nn.Module]:
        return [*self.layers]

    def forward(
        self, x: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b outputs h_z w_z"]:
        """x has the channels and resolution given at construction; the result is 1×1 for vector latents."""
        h = _through(self.layers, self.stem(x), _embedding(self.label, labels))
        return self.head(F.silu(self.norm(h)))


class Decoder(nn.Module):
    """Maps latents, and labels where there are classes, to `outputs` numbers at each pixel: the encoder's mirror image.

    Raises UserError where the resolution cannot be halved for each level.
    """

    def __init__(self, config: CoderConfig, resolution: Resolution, outputs: int, classes: int = 0):
        super().__init__()
        c, size = config.channel_mult[-1] * config.channels, config.lowest(resolution, CHANNEL_MULT)
        self.label = nn.Embedding(classes, config.channels) if classes else None
        inputs = config.latent_channels + (config.channels if classes else 0)
        self.stem = (
            nn.Conv2d(inputs, c, 3, padding=1)
            if config.latent == "spatial"
            else nn.Sequential(
                Rearrange("b c 1 1 -> b c"),
                nn.Linear(inputs, c * size.pixels),
                Rearrange("b (c h w) -> b c h w", h=size.height, w=size.width),
            )
        )
        self.layers = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for _ in range(config.blocks):
                self.layers.append(_block(config, c, mult * config.channels, classes))
                c = mult * config.channels
            if level:
                self.layers.append(Upsample(c))
        self.norm = nn.GroupNorm(config.groups, c)
        self.out = nn.Conv2d(c, outputs, 3, padding=1)

    def blocks(self) -> list[nn.Module]:
        return [*self.layers]

    def forward(
        self, z: Float[Tensor, "b c_z h_z w_z"], labels: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b outputs h w"]:
        """z has the config's `latent_shape` for the resolution given at construction."""
        emb = _embedding(self.label, labels)
        if emb is not None:  # beside the latents too: a block only shifts whole channels by it, and a class has a shape
            z = torch.cat([z, repeat(emb, "b c -> b c h w", h=z.shape[2], w=z.shape[3])], dim=1)
        h = _through(self.layers, self.stem(z), emb)
        return self.out(F.silu(self.norm(h)))


def _block(config: CoderConfig, c_in: int, c_out: int, classes: int) -> ResBlock:
    return ResBlock(c_in, c_out, config.channels if classes else None, config.groups, config.dropout)


def _embedding(table: nn.Embedding | None, labels: Tensor | None) -> Tensor | None:
    if table is None:
        return None
    assert labels is not None, "a class-conditional network takes labels"
    return F.silu(table(labels))


def _through(layers: nn.ModuleList, h: Tensor, emb: Tensor | None) -> Tensor:
    for layer in layers:
        h = layer(h, emb) if isinstance(layer, ResBlock) else layer(h)
    return h
