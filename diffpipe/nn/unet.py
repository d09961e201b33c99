"""The UNet of Ho et al. 2020 (appendix B), conditioned on a timestep and, as an option, on a class label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffpipe.errors import UserError
from diffpipe.nn.blocks import Downsample, ResBlock, SelfAttention, Upsample, sinusoidal_embedding, zero_init
from diffpipe.nn.levels import NormalizedLevelsConfig, Positive


class UNetConfig(NormalizedLevelsConfig):
    """Width, depth and attention of the UNet. The defaults are the CIFAR-10 network of Ho et al. 2020."""

    kind: Literal["unet"] = "unet"
    """The UNet of Ho et al. 2020, appendix B."""
    channels: Positive = 128
    """Channels at full resolution."""
    channel_mult: tuple[Positive, ...] = Field(default=(1, 2, 2, 2), min_length=1)
    """Channels of each level as multiples of `channels`, from full resolution down. Each level after the first halves
    the resolution."""
    blocks: Positive = 2
    """Residual blocks per level in the encoder; the decoder has one more."""
    attention: tuple[Positive, ...] = (16,)
    """Resolutions in pixels at which every residual block is followed by self-attention. The middle always has it."""
    heads: Positive = 1
    """Attention heads; `channels` is a multiple of it."""
    groups: Positive = 32
    """Groups of the group normalization; `channels` is a multiple of it."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout rate in the residual blocks."""

    @model_validator(mode="after")
    def _heads_divide(self) -> UNetConfig:
        if self.channels % self.heads:
            raise ValueError(f"channels {self.channels} must be a multiple of heads {self.heads}")
        return self

    def build(self, channels: int, resolution: int, classes: int = 0) -> UNet:
        """The network for images of this shape. Raises UserError where they do not fit."""
        return UNet(self, channels, resolution, classes)


class UNetEncoder(nn.Module):
    """The UNet's encoder: the downward path and the middle, conditioned on (t, label).

    Raises UserError where the resolution cannot be halved for each level, or where no level has a resolution that the
    config names for attention.
    """

    def __init__(self, config: UNetConfig, channels: int, resolution: int, classes: int = 0):
        super().__init__()
        config.lowest(resolution, "stage.network.channel_mult")
        levels = [resolution >> i for i in range(len(config.channel_mult))]
        absent = set(config.attention) - set(levels)
        if absent:
            raise UserError(
                f"stage.network.attention names resolutions {sorted(absent)} that no level has; the levels are {levels}"
            )
        self.config = config
        c_emb = 4 * config.channels
        self.time = nn.Sequential(nn.Linear(config.channels, c_emb), nn.SiLU(), nn.Linear(c_emb, c_emb))
        # The last row is the empty label: what a dropped label becomes.
        self.label = nn.Embedding(classes + 1, c_emb) if classes else None
        self.stem = nn.Conv2d(channels, config.channels, 3, padding=1)
        c, size = config.channels, resolution
        self.widths = [c]
        self.down = nn.ModuleList()
        for level, mult in enumerate(config.channel_mult):
            if level:
                self.down.append(Downsample(c))
                size //= 2
                self.widths.append(c)
            for _ in range(config.blocks):
                self.down.append(self._block(c, mult * config.channels, size))
                c = mult * config.channels
                self.widths.append(c)
        attend = SelfAttention(c, config.heads, config.groups)
        self.middle = nn.ModuleList([self._residual(c, c), attend, self._residual(c, c)])

    def blocks(self) -> list[nn.Module]:
        return [*_units(self.down), *self.middle]

    def _block(self, c_in: int, c_out: int, size: int) -> nn.Module:
        attends = size in self.config.attention
        attention = SelfAttention(c_out, self.config.heads, self.config.groups) if attends else nn.Identity()
        return nn.ModuleList([self._residual(c_in, c_out), attention])

    def _residual(self, c_in: int, c_out: int) -> nn.Module:
        return ResBlock(c_in, c_out, 4 * self.config.channels, self.config.groups, self.config.dropout)

    def embed(
        self,
        t: Int[Tensor, " b"],
        labels: Int[Tensor, " b"] | None,
        extra_embedding: Float[Tensor, "b c_emb"] | None = None,
    ) -> Float[Tensor, "b c_emb"]:
        """The embedding that conditions every block. The label `classes` means no label."""
        emb = self.time(sinusoidal_embedding(t, self.config.channels))
        if self.label is not None:
            assert labels is not None, "a class-conditional network takes labels"
            emb = emb + self.label(labels)
        if extra_embedding is not None:
            emb = emb + extra_embedding
        return F.silu(emb)  # once here instead of in every block

    def encode(
        self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b c_emb"]
    ) -> tuple[Float[Tensor, "b c_m h_m w_m"], list[Tensor]]:
        """The output of the middle, and the outputs of the stem and of each layer, whose channels are `widths`."""
        h = self.stem(x)
        skips = [h]
        for layer in self.down:
            h = _apply(layer, h, emb)
            skips.append(h)
        first, attend, second = self.middle
        return second(attend(first(h, emb)), emb), skips


class UNet(UNetEncoder):
    """Maps (x_t, t, label) to a tensor of x_t's shape. Raises UserError as its encoder does."""

    def __init__(self, config: UNetConfig, channels: int, resolution: int, classes: int = 0):
        super().__init__(config, channels, resolution, classes)
        c, size, skips = self.widths[-1], resolution >> (len(config.channel_mult) - 1), [*self.widths]
        self.up = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for _ in range(config.blocks + 1):
                c_out = mult * config.channels
                self.up.append(self._block(c + skips.pop(), c_out, size))
                c = c_out
            if level:
                self.up.append(Upsample(c))
                size *= 2
        assert not skips, "every skip is used once"
        self.norm = nn.GroupNorm(config.groups, c)
        self.out = zero_init(nn.Conv2d(c, channels, 3, padding=1))

    def blocks(self) -> list[nn.Module]:
        return [*super().blocks(), *_units(self.up)]

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        labels: Int[Tensor, " b"] | None = None,
        extra_embedding: Float[Tensor, "b c_emb"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """x has the channels and resolution given at construction. The label `classes` means no label.

        style: a further condition, of 4 × config.channels, which is added to the timestep's embedding.
        """
        emb = self.embed(t, labels, extra_embedding)
        h, skips = self.encode(x, emb)
        for layer in self.up:
            h = layer(h) if isinstance(layer, Upsample) else _apply(layer, torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(F.silu(self.norm(h)))


def _units(layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The layers one by one. A residual block and its attention count as two."""
    for layer in layers:
        if isinstance(layer, nn.ModuleList):
            yield from (part for part in layer if not isinstance(part, nn.Identity))
        else:
            yield layer


def _apply(layer: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
    if isinstance(layer, nn.ModuleList):
        block, attention = layer
        return attention(block(h, emb))
    return layer(h)
