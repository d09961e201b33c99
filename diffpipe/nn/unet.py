"""The UNet of Ho et al. 2020 (appendix B), conditioned on a timestep and, as an option, on a class label."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from jaxtyping import Float, Int, Real
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffpipe.errors import UserError
from diffpipe.nn.blocks import Downsample, ResBlock, SelfAttention, Upsample, sinusoidal_embedding, zero_init
from diffpipe.nn.initialization import variance_scaling
from diffpipe.nn.levels import NormalizedLevelsConfig, Positive, check_attention
from diffpipe.resolution import Resolution


class UNetShapeConfig(NormalizedLevelsConfig):
    """Width, depth and attention of a UNet, and its embedding of timesteps."""

    patch: Positive = 1
    """Side of the square patches whose pixels become channels of one place, before the first level and back after the
    last (Hoogeboom et al. 2023, section 3.3). 2: the first level has half the height and width, for a fraction of the
    cost."""
    channels: Positive = 128
    """Channels at full resolution."""
    channel_mult: tuple[Positive, ...] = Field(default=(1, 2, 2, 2), min_length=1)
    """Channels of each level as multiples of `channels`, from full resolution down. Each level after the first halves
    the resolution."""
    blocks: Positive = 2
    """Residual blocks per level in the encoder; the decoder has one more."""
    attention: tuple[Positive, ...] = (16,)
    """Levels where every residual block is followed by self-attention, by the shorter side of their features in pixels.
    The middle always has it."""
    groups: Positive = 32
    """Groups of the group normalization; `channels` is a multiple of it."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout rate in the residual blocks."""
    norm_eps: float = Field(default=1e-6, gt=0)
    """Added to the variance in group normalization: 1e-6 in the code of Ho et al., 1e-5 in torch's default."""
    frequency_shift: Literal[0, 1] = 1
    """Frequency i of the timestep embedding is 10000^(-i / (channels/2 - frequency_shift)): 1 as Ho et al. 2020, 0 as
    Dhariwal & Nichol 2021."""
    cos_first: bool = False
    """The cosines of the timestep embedding come before the sines, as Dhariwal & Nichol 2021 have them."""

    @model_validator(mode="after")
    def _frequencies_exist(self) -> UNetShapeConfig:
        least = 2 * (1 + self.frequency_shift)
        if self.channels % 2 or self.channels < least:
            raise ValueError(
                f"channels {self.channels} must be even and at least {least}: half of them are sines of the timestep"
            )
        return self

    @abstractmethod
    def residual(self, c_in: int, c_out: int) -> nn.Module:
        """A residual block, which is called with features and the embedding."""

    @abstractmethod
    def self_attention(self, channels: int) -> nn.Module:
        """Self-attention over the pixels, with a skip around."""

    @abstractmethod
    def downsample(self, channels: int) -> nn.Module:
        """The layer that halves height and width: `Downsample`, or a block that is called as a residual one."""

    @abstractmethod
    def upsample(self, channels: int) -> nn.Module:
        """The layer that doubles height and width: `Upsample`, or a block that is called as a residual one."""

    @abstractmethod
    def initialize(self, net: nn.Module) -> None:
        """Draw the initial weights of such layers, where they are not those of their constructors."""


class UNetConfig(UNetShapeConfig):
    """Width, depth and attention of the UNet. The defaults are the CIFAR-10 network of Ho et al. 2020."""

    kind: Literal["unet"] = "unet"
    """The UNet of Ho et al. 2020, appendix B."""
    heads: Positive = 1
    """Attention heads; `channels` is a multiple of it."""
    head_channels: Positive | None = None
    """Channels of an attention head, so that wider levels have more heads, in the place of `heads`. null: every
    attention has `heads`."""
    downsample_padding: Literal["both", "end"] = "end"
    """Zeros around a strided convolution: on all sides, or below and to the right alone, as in the code of Ho et al."""

    @model_validator(mode="after")
    def _heads_divide(self) -> UNetConfig:
        if self.channels % self.heads:
            raise ValueError(f"channels {self.channels} must be a multiple of heads {self.heads}")
        return self

    def build(self, channels: int, resolution: Resolution, classes: int = 0, out_channels: int | None = None) -> UNet:
        """The network for images of this shape. Raises UserError where they do not fit.

        out_channels: None: as many as `channels`.
        """
        return UNet(self, channels, resolution, classes, out_channels)

    def residual(self, c_in: int, c_out: int) -> nn.Module:
        return ResBlock(c_in, c_out, 4 * self.channels, self.groups, self.dropout, self.norm_eps)

    def self_attention(self, channels: int) -> nn.Module:
        width = self.head_channels
        if width is not None and channels % width:
            raise UserError(
                f"stage.network.head_channels {width} does not divide the width {channels} of an attention, which the "
                f"middle of the network always has; set it to a divisor, or to null for stage.network.heads"
            )
        heads = self.heads if width is None else channels // width
        return SelfAttention(channels, heads, self.groups, self.norm_eps)

    def downsample(self, channels: int) -> nn.Module:
        return Downsample(channels, self.downsample_padding)

    def upsample(self, channels: int) -> nn.Module:
        return Upsample(channels)

    def initialize(self, net: nn.Module) -> None:
        variance_scaling(net)


class UNetEncoder(nn.Module):
    """The UNet's encoder: the downward path and the middle, conditioned on (t, label).

    Raises UserError where the resolution cannot be halved for each level, or where no level has a resolution that the
    config names for attention.
    """

    def __init__(self, config: UNetShapeConfig, channels: int, resolution: Resolution, classes: int = 0):
        super().__init__()
        if not resolution.divisible_by(config.patch):
            raise UserError(f"data.resolution {resolution} must be a multiple of stage.network.patch {config.patch}")
        resolution = resolution.divided_by(config.patch)
        config.lowest(resolution, "stage.network.channel_mult")
        check_attention(config.attention, [resolution.shorter >> i for i in range(len(config.channel_mult))])
        self.config = config
        c_emb = 4 * config.channels
        self.time = nn.Sequential(nn.Linear(config.channels, c_emb), nn.SiLU(), nn.Linear(c_emb, c_emb))
        # The last row is the empty label: what a dropped label becomes.
        self.label = nn.Embedding(classes + 1, c_emb) if classes else None
        self.stem = nn.Conv2d(channels * config.patch**2, config.channels, 3, padding=1)
        c, size = config.channels, resolution.shorter
        self.widths = [c]
        self.down = nn.ModuleList()
        for level, mult in enumerate(config.channel_mult):
            if level:
                self.down.append(config.downsample(c))
                size //= 2
                self.widths.append(c)
            for _ in range(config.blocks):
                self.down.append(self._block(c, mult * config.channels, size))
                c = mult * config.channels
                self.widths.append(c)
        self.middle = nn.ModuleList([config.residual(c, c), config.self_attention(c), config.residual(c, c)])
        config.initialize(self)

    def blocks(self) -> list[nn.Module]:
        return [*_units(self.down), *self.middle]

    def _block(self, c_in: int, c_out: int, size: int) -> nn.Module:
        attends = size in self.config.attention
        attention = self.config.self_attention(c_out) if attends else nn.Identity()
        return nn.ModuleList([self.config.residual(c_in, c_out), attention])

    def embed(
        self,
        t: Real[Tensor, " b"],
        labels: Int[Tensor, " b"] | None,
        extra_embedding: Float[Tensor, "b c_emb"] | None = None,
    ) -> Float[Tensor, "b c_emb"]:
        """The embedding that conditions every block. The label `classes` means no label."""
        config = self.config
        waves = sinusoidal_embedding(t, config.channels, shift=config.frequency_shift, cos_first=config.cos_first)
        emb = self.time(waves.to(self.stem.weight.dtype))
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
        h = self.stem(F.pixel_unshuffle(x, self.config.patch) if self.config.patch > 1 else x)
        skips = [h]
        for layer in self.down:
            h = _apply(layer, h, emb)
            skips.append(h)
        first, attend, second = self.middle
        return second(attend(first(h, emb)), emb), skips


class UNet(UNetEncoder):
    """Maps (x_t, t, label) to a tensor of x_t's height and width. Raises UserError as its encoder does.

    out_channels: the channels of that tensor; None: those of x_t.
    """

    def __init__(
        self,
        config: UNetShapeConfig,
        channels: int,
        resolution: Resolution,
        classes: int = 0,
        out_channels: int | None = None,
    ):
        super().__init__(config, channels, resolution, classes)
        size = resolution.shorter // config.patch >> (len(config.channel_mult) - 1)
        c, skips = self.widths[-1], [*self.widths]
        self.up = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for _ in range(config.blocks + 1):
                c_out = mult * config.channels
                self.up.append(self._block(c + skips.pop(), c_out, size))
                c = c_out
            if level:
                self.up.append(config.upsample(c))
                size *= 2
        assert not skips, "every skip is used once"
        self.norm = nn.GroupNorm(config.groups, c, config.norm_eps)
        self.out = zero_init(nn.Conv2d(c, (out_channels or channels) * config.patch**2, 3, padding=1))
        config.initialize(self.up)

    def blocks(self) -> list[nn.Module]:
        return [*super().blocks(), *_units(self.up)]

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        t: Real[Tensor, " b"],
        labels: Int[Tensor, " b"] | None = None,
        extra_embedding: Float[Tensor, "b c_emb"] | None = None,
    ) -> Float[Tensor, "b c_out h w"]:
        """x has the channels and resolution given at construction. The label `classes` means no label.

        t: timesteps, whole or not. extra_embedding: a further condition, of 4 × config.channels, which is added to the
        timestep's embedding.
        """
        emb = self.embed(t, labels, extra_embedding)
        h, skips = self.encode(x, emb)
        for layer in self.up:
            if isinstance(layer, nn.ModuleList):
                h = torch.cat([h, skips.pop()], dim=1)
            h = _apply(layer, h, emb)
        y = self.out(F.silu(self.norm(h)))
        return F.pixel_shuffle(y, self.config.patch) if self.config.patch > 1 else y


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
    return layer(h) if isinstance(layer, (Downsample, Upsample)) else layer(h, emb)
