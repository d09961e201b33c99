"""Glow (Kingma & Dhariwal 2018): the multi-scale network of invertible convolutions and couplings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, cast

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from diffpipe.config import Config
from diffpipe.errors import UserError
from diffpipe.nn.flow import Chain, Context, Prior, one_hot, squeeze, unsqueeze
from diffpipe.plural import plural
from diffpipe.resolution import Resolution

Positive = Annotated[int, Field(ge=1)]


class GlowConfig(Config):
    """Depth and width. The defaults are the CIFAR-10 network of Kingma & Dhariwal 2018."""

    kind: Literal["glow"]
    """Glow (Kingma & Dhariwal 2018): affine couplings and invertible 1×1 convolutions."""
    levels: Positive = 3
    """Times that the image is squeezed to half its resolution. Half the channels leave after each level but the
    last."""
    steps: Positive = 32
    """Steps of flow per level."""
    hidden: Positive = 512
    """Hidden channels of the couplings' networks."""

    def build(self, channels: int, resolution: Resolution, classes: int = 0) -> Glow:
        """The network for images of this shape. Raises UserError where they do not fit."""
        return Glow(self, channels, resolution, classes)


class Glow(nn.Module):
    """An invertible map x → (z, log|det dz/dx|), z of x's shape and standard normal under the model.

    Raises UserError where the resolution cannot be squeezed once a level.
    """

    def __init__(self, config: GlowConfig, channels: int, resolution: Resolution, classes: int = 0):
        super().__init__()
        if not resolution.divisible_by(2**config.levels):
            raise UserError(
                f"data.resolution {resolution} cannot be squeezed {plural(config.levels, 'time')} for "
                f"stage.network.levels; take a multiple of {2**config.levels} or fewer levels"
            )
        self.classes = classes
        self.chains, self.priors = nn.ModuleList(), nn.ModuleList()
        c = channels
        for level in range(config.levels):
            c *= 4
            stays = c // 2 if level < config.levels - 1 else 0
            self.chains.append(Chain(c, config.steps, config.hidden, classes))
            self.priors.append(Prior(c - stays, stays, classes))
            c = stays

    def blocks(self) -> list[nn.Module]:
        return [*(layer for chain in self.chains for layer in cast(Chain, chain).layers), *self.priors]

    def context(self, x: Tensor, labels: Tensor | None) -> Context:
        """The layers' context, of x's type and on its device."""
        if not self.classes:
            return None
        assert labels is not None, "a class-conditional network takes labels"
        return one_hot(labels, self.classes, x)[:, :, None, None]

    def forward(
        self, x: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None = None
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        context = self.context(x, labels)
        log_det, h, parts = x.new_zeros(len(x)), x, []
        for chain, prior in zip(self.chains, self.priors, strict=True):
            leaves, term = chain(squeeze(h), context)
            last = len(parts) == len(self.chains) - 1
            if not last:
                h, leaves = leaves.chunk(2, dim=1)
            z, gaussian = prior(leaves, None if last else h, context)
            log_det = log_det + term + gaussian
            parts.append(z)
        return _join(parts), log_det

    def inverse(self, z: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None = None) -> Float[Tensor, "b c h w"]:
        context, h = self.context(z, labels), None
        for part, chain, prior in zip(
            reversed(_part(z, len(self.chains))), reversed(self.chains), reversed(self.priors), strict=True
        ):
            leaves = prior.inverse(part, h, context)  # pyright: ignore[reportCallIssue]
            y = leaves if h is None else torch.cat([h, leaves], dim=1)
            h = unsqueeze(chain.inverse(y, context))  # pyright: ignore[reportCallIssue]
        assert h is not None, "there is at least one level"
        return h


def _join(parts: Sequence[Tensor]) -> Tensor:
    """The channels that were factored out at each level, put back into the image."""
    z = unsqueeze(parts[-1])
    for part in reversed(parts[:-1]):
        z = unsqueeze(torch.cat([z, part], dim=1))
    return z


def _part(z: Tensor, levels: int) -> list[Tensor]:
    """The inverse of `_join`: the channels that leave at each level."""
    parts = []
    for _ in range(levels - 1):
        z, leaves = squeeze(z).chunk(2, dim=1)
        parts.append(leaves)
    return [*parts, squeeze(z)]
