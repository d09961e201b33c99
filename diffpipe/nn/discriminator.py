"""The discriminator of a GAN: a residual network that gives each image one logit. A high logit means real.

No layer mixes samples: a logit does not depend on the rest of the batch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import cast

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffpipe.nn.blocks import Downsample, ResBlock, res_blocks, zero_init
from diffpipe.nn.levels import NormalizedLevelsConfig
from diffpipe.resolution import Resolution

# A mean over many places is a small number, and the losses depend on differences of logits.
_GAIN = 4.0


class DiscriminatorConfig(NormalizedLevelsConfig):
    """Width and depth of the discriminator."""


class Discriminator(nn.Module):
    """Maps (images, label) to logits. Raises UserError where the resolution cannot be halved for each level.

    Each place of each level has a logit, for details, and the last features have one together, for the whole image. A
    label conditions every block and adds a logit by projection (Miyato & Koyama 2018).
    """

    def __init__(self, config: DiscriminatorConfig, channels: int, resolution: Resolution, classes: int = 0):
        super().__init__()
        smallest = config.lowest(resolution, "stage.discriminator.channel_mult")
        widths = [config.channels * mult for mult in config.channel_mult]
        c_emb = 4 * config.channels if classes else None
        self.label = nn.Embedding(classes, c_emb) if c_emb else None
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.levels, self.down = nn.ModuleList(), nn.ModuleList()
        c = widths[0]
        for i, width in enumerate(widths):
            if i:
                self.down.append(Downsample(c))
            self.levels.append(res_blocks(c, width, config.blocks, c_emb, config.groups))
            c = width
        self.last = ResBlock(c, c, c_emb, config.groups, dropout=0.0)
        self.heads = nn.ModuleList(Head(width, config.groups) for width in (*widths, c))
        self.whole = nn.Linear(c * smallest.pixels, 1)
        self.projection = zero_init(nn.Embedding(classes, c)) if classes else None

    def blocks(self) -> list[nn.Module]:
        return [*(block for level in self.levels for block in cast(nn.ModuleList, level)), *self.down, *self.heads]

    def forward(self, x: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None = None) -> Float[Tensor, " b"]:
        emb = None
        if self.label is not None:
            assert labels is not None, "a class-conditional discriminator takes labels"
            emb = F.silu(self.label(labels))
        h, features = self.stem(x), []
        for i, level in enumerate(self.levels):
            if i:
                h = self.down[i - 1](h)
            for block in level:  # pyright: ignore[reportGeneralTypeIssues]
                h = block(h, emb)
            features.append(h)
        features.append(self.last(h, emb))
        return multiscale_logits(features, self.heads, self.projection, labels, self.whole)


class Head(nn.Sequential):
    """A layer that maps features to a logit at each place. It computes in float32: see `multiscale_logits`."""

    float32 = True

    def __init__(self, channels: int, groups: int):
        super().__init__(nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, 1, 3, padding=1))


def multiscale_logits(
    features: Sequence[Float[Tensor, "b _ _ _"]],
    heads: nn.ModuleList,
    projection: nn.Module | None,
    labels: Int[Tensor, " b"] | None,
    whole: nn.Module | None = None,
) -> Float[Tensor, " b"]:
    """A discriminator's logits, of at least float32, from its features at several resolutions.

    heads: one for each resolution; the means of their logits over all places are added up. projection: a vector for
    each label; its product with the mean of the last features is a logit, too. whole: one more logit, from all of the
    last features.
    """
    # The losses depend on small differences between logits that may be large: bfloat16 has too few digits.
    with torch.autocast(features[0].device.type, enabled=False):
        features = [h.to(torch.promote_types(h.dtype, torch.float32)) for h in features]
        logits = []
        if whole is not None:
            logits.append(whole(rearrange(F.silu(features[-1]), "b c h w -> b (c h w)"))[:, 0])
        means = [reduce(each(h), "b 1 h w -> b", "mean") for each, h in zip(heads, features, strict=True)]
        logits.append(_GAIN * torch.stack(means).sum(0))
        if projection is not None:
            assert labels is not None, "a class-conditional discriminator takes labels"
            fit = projection(labels) * reduce(features[-1], "b c h w -> b c", "mean")
            logits.append(reduce(fit, "b c -> b", "sum"))
        return functools.reduce(torch.add, logits)
