"""The UNet of Ho et al. 2020 (appendix B), conditioned on a timestep and, as an option, on a class label."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffpipe.config import Config
from diffpipe.contract import UserError
from diffpipe.nn.blocks import Downsample, ResBlock, SelfAttention, Upsample, sinusoidal_embedding, zero_init

Positive = Annotated[int, Field(ge=1)]


class UNetConfig(Config):
    """Width, depth and attention of the UNet. The defaults are the CIFAR-10 network of Ho et al. 2020."""

    channels: Positive = 128
    """Channels at full resolution."""
    mults: tuple[Positive, ...] = Field(default=(1, 2, 2, 2), min_length=1)
    """Channels of each level as multiples of `channels`; every level after the first halves the resolution."""
    blocks: Positive = 2
    """Residual blocks a level on the way down (one more on the way up)."""
    attention: tuple[Positive, ...] = (16,)
    """Resolutions at which every residual block is followed by self-attention. The middle always has it."""
    heads: Positive = 1
    groups: Positive = 32
    """Groups of the group normalization."""
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _divisible(self) -> UNetConfig:
        for divisor in ("groups", "heads"):
            if self.channels % getattr(self, divisor):
                raise ValueError(f"channels {self.channels} must be a multiple of {divisor} {getattr(self, divisor)}")
        return self


class UNet(nn.Module):
    """Maps (x_t, t, label) to a tensor of x_t's shape.

    Raises UserError where the resolution cannot be halved for each level, or no level has a resolution asked to attend.
    """

    def __init__(self, config: UNetConfig, channels: int, resolution: int, classes: int = 0):
        super().__init__()
        halvings = len(config.mults) - 1
        if resolution % 2**halvings:
            raise UserError(
                f"data.resolution {resolution} cannot be halved {halvings} times for stage.unet.mults "
                f"{list(config.mults)}; take a multiple of {2**halvings} or fewer levels"
            )
        absent = set(config.attention) - {resolution >> i for i in range(halvings + 1)}
        if absent:
            raise UserError(
                f"stage.unet.attention names resolutions {sorted(absent)} that no level has; "
                f"the levels are {[resolution >> i for i in range(halvings + 1)]}"
            )
        self.base = config.channels
        c_emb = 4 * config.channels
        self.time = nn.Sequential(nn.Linear(config.channels, c_emb), nn.SiLU(), nn.Linear(c_emb, c_emb))
        # The last row is the empty label: what a dropped label becomes.
        self.label = nn.Embedding(classes + 1, c_emb) if classes else None
        self.stem = nn.Conv2d(channels, config.channels, 3, padding=1)

        def block(c_in: int, c_out: int) -> nn.Module:
            return ResBlock(c_in, c_out, c_emb, config.groups, config.dropout)

        def attention(c: int, size: int) -> nn.Module:
            return SelfAttention(c, config.heads, config.groups) if size in config.attention else nn.Identity()

        c, size, skips = config.channels, resolution, [config.channels]
        self.down = nn.ModuleList()
        for level, mult in enumerate(config.mults):
            if level:
                self.down.append(Downsample(c))
                size //= 2
                skips.append(c)
            for _ in range(config.blocks):
                self.down.append(
                    nn.ModuleList([block(c, mult * config.channels), attention(mult * config.channels, size)])
                )
                c = mult * config.channels
                skips.append(c)
        self.middle = nn.ModuleList([block(c, c), SelfAttention(c, config.heads, config.groups), block(c, c)])
        self.up = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.mults))):
            for _ in range(config.blocks + 1):
                c_out = mult * config.channels
                self.up.append(nn.ModuleList([block(c + skips.pop(), c_out), attention(c_out, size)]))
                c = c_out
            if level:
                self.up.append(Upsample(c))
                size *= 2
        assert not skips, "every skip is used once"
        self.norm = nn.GroupNorm(config.groups, c)
        self.out = zero_init(nn.Conv2d(c, channels, 3, padding=1))

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        labels: Int[Tensor, " b"] | None = None,
        style: Float[Tensor, "b c_emb"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """x has the channels and resolution given at construction; a label of `classes` stands for none.

        style: what else to condition on, of 4 × config.channels, added to the timestep's embedding.
        """
        emb = self.time(sinusoidal_embedding(t, self.base))
        if self.label is not None:
            assert labels is not None, "a class-conditional network takes labels"
            emb = emb + self.label(labels)
        if style is not None:
            emb = emb + style
        emb = F.silu(emb)  # once here instead of in every block
        h = self.stem(x)
        skips = [h]
        for layer in self.down:
            h = _apply(layer, h, emb)
            skips.append(h)
        first, attend, second = self.middle
        h = second(attend(first(h, emb)), emb)
        for layer in self.up:
            h = layer(h) if isinstance(layer, Upsample) else _apply(layer, torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(F.silu(self.norm(h)))


def _apply(layer: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
    if isinstance(layer, nn.ModuleList):
        block, attention = layer
        return attention(block(h, emb))
    return layer(h)
