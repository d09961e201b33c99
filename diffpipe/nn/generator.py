"""The generator of a GAN: an image of a latent vector, without normalization."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import torch
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffpipe.config import Config
from diffpipe.nn.normfree import SLOPE, NormFreeBlock, smallest_resolution

Positive = Annotated[int, Field(ge=1)]


class GeneratorConfig(Config):
    """Width and depth of the generator."""

    latent: Positive = 64
    """Numbers in the latent vector."""
    channels: Positive = 64
    """Channels at full resolution."""
    mults: tuple[Positive, ...] = Field(default=(1, 2, 4), min_length=1)
    """Channels of each level as multiples of `channels`, from full resolution down; each level halves it."""
    blocks: Positive = 1
    """Residual blocks a level."""


class Generator(nn.Module):
    """Maps (latent, label) to an image, without normalization (Huang et al. 2024, section 3).

    Raises UserError where the resolution cannot be halved for each level.
    """

    def __init__(self, config: GeneratorConfig, channels: int, resolution: int, classes: int = 0):
        super().__init__()
        mults = f"stage.generator.mults {list(config.mults)}"
        smallest = smallest_resolution(resolution, len(config.mults), mults)
        widths = [config.channels * mult for mult in reversed(config.mults)]
        depth = len(widths) * config.blocks
        self.label = nn.Embedding(classes, config.latent) if classes else None
        self.start = nn.Linear(config.latent * (2 if classes else 1), widths[0])
        # Each channel starts as one learned map, scaled by what the latent asks of it (Huang et al. 2024).
        self.basis = nn.Parameter(torch.randn(widths[0], smallest, smallest))
        self.levels = nn.ModuleList(
            nn.ModuleList(NormFreeBlock(width, depth) for _ in range(config.blocks)) for width in widths
        )
        self.narrow = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(widths))
        self.out = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(
        self, z: Float[Tensor, "b latent"], labels: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        if self.label is not None:
            assert labels is not None, "a class-conditional generator takes labels"
            z = torch.cat([z, self.label(labels)], dim=1)
        h = self.basis * rearrange(self.start(z), "b c -> b c 1 1")
        for i, level in enumerate(self.levels):
            if i:
                h = F.interpolate(self.narrow[i - 1](h), scale_factor=2.0, mode="bilinear")
            for block in level:  # pyright: ignore[reportGeneralTypeIssues]
                h = block(h)
        return self.out(F.leaky_relu(h, SLOPE))
