"""The patch discriminator (PatchGAN, Isola et al. 2017): a logit for each patch. A high logit means real.

No layer mixes samples: there is no batch norm, and a logit does not depend on the rest of the batch.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffpipe.nn.levels import LevelsConfig
from diffpipe.nn.normfree import SLOPE, NormFreeBlock
from diffpipe.resolution import Resolution


class PatchDiscriminator(nn.Module):
    """Maps images to logits at each place of the lowest level.

    A logit depends on `patch` pixels in height and width. With one block per level these are 9·2^(levels - 1) - 2: 16,
    34 and 70 for two to four levels, as in Isola et al. Raises UserError where the resolution cannot be halved for each
    level.
    """

    def __init__(self, config: LevelsConfig, channels: int, resolution: Resolution):
        super().__init__()
        config.lowest(resolution, "stage.patch.network.channel_mult")
        widths = [config.channels * mult for mult in config.channel_mult]
        depth = len(widths) * config.blocks
        self.patch = 3 + sum(4 * config.blocks * 2**i + 2 ** (i - 1) * (i > 0) for i in range(len(widths)))
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList(
            nn.Sequential(*(NormFreeBlock(width, depth) for _ in range(config.blocks))) for width in widths
        )
        self.widen = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(widths))
        self.out = nn.Conv2d(widths[-1], 1, 1)

    def blocks(self) -> list[nn.Module]:
        return [*(block for level in self.levels for block in cast(nn.Sequential, level)), *self.widen]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h2 w2"]:
        h = self.stem(x)
        for i, level in enumerate(self.levels):
            if i:
                h = self.widen[i - 1](F.avg_pool2d(h, 2))
            h = level(h)
        # Small differences between logits need more digits than bfloat16 has.
        with torch.autocast(x.device.type, enabled=False):
            h = h.to(torch.promote_types(h.dtype, torch.float32))
            return self.out(F.leaky_relu(h, SLOPE))[:, 0]
