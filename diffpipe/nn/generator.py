"""The generator of a GAN: it maps a latent vector and, as an option, a class label to an image."""

from __future__ import annotations

from typing import cast

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffpipe.nn.blocks import Upsample, res_blocks
from diffpipe.nn.levels import NormalizedLevelsConfig, Positive
from diffpipe.resolution import Resolution


class GeneratorConfig(NormalizedLevelsConfig):
    """Width and depth of the generator."""

    latent: Positive = 64
    """Numbers in the latent vector."""


class Generator(nn.Module):
    """Maps (latent, label) to an image in [-1, 1].

    The latent and the label give the features at the lowest resolution, and condition every residual block from there
    up. Raises UserError where the resolution cannot be halved for each level.
    """

    def __init__(self, config: GeneratorConfig, channels: int, resolution: Resolution, classes: int = 0):
        super().__init__()
        self.smallest = config.lowest(resolution, "stage.generator.channel_mult")
        widths = [config.channels * mult for mult in reversed(config.channel_mult)]
        c_emb = 4 * config.channels
        self.label = nn.Embedding(classes, config.latent) if classes else None
        self.style = nn.Sequential(
            nn.Linear(config.latent * (2 if classes else 1), c_emb), nn.SiLU(), nn.Linear(c_emb, c_emb), nn.SiLU()
        )
        self.start = nn.Linear(c_emb, widths[0] * self.smallest.pixels)
        self.levels, self.up = nn.ModuleList(), nn.ModuleList()
        c = widths[0]
        for i, width in enumerate(widths):
            if i:
                self.up.append(Upsample(c))
            self.levels.append(res_blocks(c, width, config.blocks, c_emb, config.groups))
            c = width
        self.norm = nn.GroupNorm(config.groups, c)
        self.out = nn.Conv2d(c, channels, 3, padding=1)

    def blocks(self) -> list[nn.Module]:
        return [*(block for level in self.levels for block in cast(nn.ModuleList, level)), *self.up]

    def forward(
        self, z: Float[Tensor, "b latent"], labels: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        if self.label is not None:
            assert labels is not None, "a class-conditional generator takes labels"
            z = torch.cat([z, self.label(labels)], dim=1)
        style = self.style(z)
        h = rearrange(self.start(style), "b (c h w) -> b c h w", h=self.smallest.height, w=self.smallest.width)
        for i, level in enumerate(self.levels):
            if i:
                h = self.up[i - 1](h)
            for block in level:  # pyright: ignore[reportGeneralTypeIssues]
                h = block(h, style)
        return torch.tanh(self.out(F.silu(self.norm(h))))
