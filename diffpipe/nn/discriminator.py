"""The discriminator: a convolutional residual network that gives each image one logit, high for what it takes as real.

It conditions on a class label by projection (Miyato & Koyama 2018). No layer looks beyond one sample: logits do not
depend on how a batch is put together.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import torch
from einops import reduce
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffpipe.config import Config
from diffpipe.nn.normfree import SLOPE, NormFreeBlock, smallest_resolution

Positive = Annotated[int, Field(ge=1)]


class DiscriminatorConfig(Config):
    """Width and depth of the discriminator."""

    channels: Positive = 64
    """Channels at full resolution."""
    mults: tuple[Positive, ...] = Field(default=(1, 2, 4), min_length=1)
    """Channels of each level as multiples of `channels`; every level after the first halves the resolution."""
    blocks: Positive = 1
    """Residual blocks a level."""


class Discriminator(nn.Module):
    """Maps (images, label) to logits. Raises UserError where the resolution cannot be halved for each level."""

    def __init__(self, config: DiscriminatorConfig, channels: int, resolution: int, classes: int = 0):
        super().__init__()
        mults = f"stage.discriminator.mults {list(config.mults)}"
        smallest = smallest_resolution(resolution, len(config.mults), mults)
        self.stem = nn.Conv2d(channels, config.channels * config.mults[0], 3, padding=1)
        widths = [config.channels * mult for mult in config.mults]
        depth = len(widths) * config.blocks
        self.levels = nn.ModuleList(
            nn.ModuleList(NormFreeBlock(width, depth) for _ in range(config.blocks)) for width in widths
        )
        self.widen = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(widths))
        # Each channel's map is weighted by one learned map of its own (Huang et al. 2024), not averaged: where in the
        # image a feature lies counts.
        self.basis = nn.Conv2d(widths[-1], widths[-1], smallest, groups=widths[-1])
        self.out = nn.Linear(widths[-1], 1)
        self.label = nn.Embedding(classes, widths[-1]) if classes else None

    def forward(self, x: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None = None) -> Float[Tensor, " b"]:
        h = self.stem(x)
        for i, level in enumerate(self.levels):
            if i:
                h = self.widen[i - 1](F.avg_pool2d(h, 2))
            for block in level:  # pyright: ignore[reportGeneralTypeIssues]
                h = block(h)
        features = self.basis(F.leaky_relu(h, SLOPE)).flatten(1)
        # Games look at small differences between logits, which may lie far from zero: bfloat16 has no digits for them.
        with torch.autocast(x.device.type, enabled=False):
            features = features.to(torch.promote_types(features.dtype, torch.float32))
            logits = self.out(features)[:, 0]
            if self.label is not None:
                assert labels is not None, "a class-conditional discriminator takes labels"
                projection = reduce(self.label(labels) * features, "b c -> b", "sum")
                logits = logits + projection / features.shape[1] ** 0.5
        return logits
