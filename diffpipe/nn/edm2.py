"""The magnitude-preserving UNet of Karras et al. 2024 (arXiv:2312.02696), "EDM2", configuration G, figure 21."""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffpipe.errors import UserError
from diffpipe.nn.blocks import Resampling, resampled
from diffpipe.nn.levels import LevelsConfig, Positive, check_attention
from diffpipe.nn.magnitude_preserving import (
    MPConv,
    MPFourier,
    MPLayer,
    MPLinear,
    mp_cat,
    mp_silu,
    mp_sum,
    normalize,
)
from diffpipe.resolution import Resolution

_CLIP = 256.0  # of activations, so that they stay in the range of float16


class EDM2Config(LevelsConfig):
    """Width, depth, attention and balances. The defaults are EDM2-S of Karras et al. 2024, table 6."""

    kind: Literal["edm2"]
    """The magnitude-preserving UNet of Karras et al. 2024. It goes with stage.prediction=edm, and takes no weight
    decay: each update is followed by a projection of the weights to unit magnitude."""
    channels: Positive = 192
    """Channels at full resolution."""
    channel_mult: tuple[Positive, ...] = Field(default=(1, 2, 3, 4), min_length=1)
    """Channels of each level as multiples of `channels`, from full resolution down. Each level after the first halves
    the resolution."""
    blocks: Positive = 3
    """Residual blocks per level in the encoder; the decoder has one more."""
    attention: tuple[Positive, ...] = (16, 8)
    """Levels where every residual block is followed by self-attention, by the shorter side of their features in pixels.
    The first block of the decoder always has it."""
    head_channels: Positive = 64
    """Channels of an attention head. Wider levels have more heads."""
    label_balance: float = Field(default=0.5, ge=0, le=1)
    """Share of the label in the embedding; the rest is the noise level's."""
    concat_balance: float = Field(default=0.5, ge=0, le=1)
    """Share of a skip connection in the input of a decoder block; the rest is the main path's."""
    res_balance: float = Field(default=0.3, ge=0, le=1)
    """Share of the residual branch in a block's sum."""
    attn_balance: float = Field(default=0.3, ge=0, le=1)
    """Share of the attention in its sum."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout rate in the residual blocks."""

    def build(
        self, channels: int, resolution: Resolution, classes: int = 0, out_channels: int | None = None
    ) -> EDM2UNet:
        """The network for images of this shape. Raises UserError where they do not fit.

        out_channels: None: as many as `channels`.
        """
        return EDM2UNet(self, channels, resolution, classes, out_channels)


class EDM2Block(nn.Module):
    """A residual block, followed by self-attention where it `attends` (figure 21).

    decoder: the block changes its channels in the skip alone and has no pixel norm. resample: "up" doubles height and
    width at its start, "down" halves them.
    """

    def __init__(
        self,
        config: EDM2Config,
        c_in: int,
        c_out: int,
        c_emb: int,
        *,
        decoder: bool = False,
        attends: bool = False,
        resample: Resampling | None = None,
    ):
        super().__init__()
        if attends and c_out % config.head_channels:
            raise UserError(
                f"stage.network.head_channels {config.head_channels} does not divide the width {c_out} of a level with "
                f"attention; choose another, or other channels"
            )
        self.config, self.decoder = config, decoder
        self.resample: Resampling | None = resample
        self.heads = c_out // config.head_channels
        # FSDP2 shards no 0-d parameter.
        self.emb_gain = nn.Parameter(torch.zeros(1))
        self.conv1 = MPConv(c_in if decoder else c_out, c_out, 3)
        self.emb = MPLinear(c_emb, c_out)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = MPConv(c_out, c_out, 3)
        self.skip = MPConv(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.qkv = MPConv(c_out, 3 * c_out, 1) if attends else None
        self.out = MPConv(c_out, c_out, 1) if attends else None

    def forward(self, x: Float[Tensor, "b c_in h w"], emb: Float[Tensor, "b c_emb"]) -> Float[Tensor, "b c_out _ _"]:
        x = resampled(x, self.resample)
        if not self.decoder:
            x = normalize(self.skip(x), dims=[1])
        y = self.conv1(mp_silu(x))
        scale = self.emb(emb, self.emb_gain) + 1
        y = mp_silu(y * rearrange(scale, "b c -> b c 1 1"))
        y = self.conv2(self.dropout(y))
        x = mp_sum(self.skip(x) if self.decoder else x, y, self.config.res_balance)
        if self.qkv is not None and self.out is not None:
            x = mp_sum(x, self.out(self._attention(self.qkv(x))), self.config.attn_balance)
        return x.clamp(-_CLIP, _CLIP)

    def _attention(self, qkv: Float[Tensor, "b c3 h w"]) -> Float[Tensor, "b c h w"]:
        """Cosine attention: queries, keys and values have magnitude 1 in each head (section 2.3)."""
        parts = rearrange(qkv, "b (heads d qkv) h w -> qkv b heads (h w) d", heads=self.heads, qkv=3)
        q, k, v = normalize(parts, dims=[-1])
        y = F.scaled_dot_product_attention(q, k, v)
        return rearrange(y, "b heads (h w) d -> b (heads d) h w", h=qkv.shape[2])


class EDM2UNet(nn.Module):
    """Maps (x_t, t, label) to a tensor of x_t's height and width. A new network predicts zero.

    out_channels: the channels of that tensor; None: those of x_t. Raises UserError where the resolution cannot be
    halved for each level, or where no level has a resolution that the config names for attention.
    """

    def __init__(
        self,
        config: EDM2Config,
        channels: int,
        resolution: Resolution,
        classes: int = 0,
        out_channels: int | None = None,
    ):
        super().__init__()
        config.lowest(resolution, "stage.network.channel_mult")
        sizes = [resolution.shorter >> level for level in range(len(config.channel_mult))]
        check_attention(config.attention, sizes)
        self.config, self.classes = config, classes
        widths = [mult * config.channels for mult in config.channel_mult]
        self._c_emb = max(widths)
        self.fourier = MPFourier(widths[0])
        self.noise = MPLinear(widths[0], self._c_emb)
        self.label = MPLinear(classes, self._c_emb) if classes else None
        self.stem = MPConv(channels + 1, widths[0], 3)  # the constant channel stands for all biases
        skips = self._build_encoder(widths, sizes)
        self._build_decoder(widths, sizes, skips)
        self.out = MPConv(widths[0], out_channels or channels, 3)
        self.out_gain = nn.Parameter(torch.zeros(1))

    def _build_encoder(self, widths: list[int], sizes: list[int]) -> list[int]:
        """The encoder after the stem. Returns the channels of its skip connections, those of the stem first."""
        c = widths[0]
        skips, self.encoder = [c], nn.ModuleList()
        for level, (width, size) in enumerate(zip(widths, sizes, strict=True)):
            if level:
                self.encoder.append(EDM2Block(self.config, c, c, self._c_emb, resample="down"))
                skips.append(c)
            for _ in range(self.config.blocks):
                attends = size in self.config.attention
                self.encoder.append(EDM2Block(self.config, c, width, self._c_emb, attends=attends))
                c = width
                skips.append(c)
        return skips

    def _build_decoder(self, widths: list[int], sizes: list[int], skips: list[int]) -> None:
        """The decoder, which begins with two blocks at the lowest level without skip connection."""
        c = widths[-1]
        first = EDM2Block(self.config, c, c, self._c_emb, decoder=True, attends=True)
        self.decoder = nn.ModuleList([first, EDM2Block(self.config, c, c, self._c_emb, decoder=True)])
        self._takes_skip = [False, False]
        for width, size in reversed(list(zip(widths, sizes, strict=True))):
            if size != sizes[-1]:
                self.decoder.append(EDM2Block(self.config, c, c, self._c_emb, decoder=True, resample="up"))
                self._takes_skip.append(False)
            for _ in range(self.config.blocks + 1):
                c_in, attends = c + skips.pop(), size in self.config.attention
                self.decoder.append(EDM2Block(self.config, c_in, width, self._c_emb, decoder=True, attends=attends))
                self._takes_skip.append(True)
                c = width
        assert not skips, "every skip is used once"

    def blocks(self) -> list[nn.Module]:
        return [*self.encoder, *self.decoder]

    def after_step(self, taken: Bool[Tensor, ""]) -> None:
        """Project every weight to magnitude 1 for each output, where the update was `taken`."""
        for layer in self.modules():
            if isinstance(layer, MPLayer):
                layer.project(taken)

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], labels: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b c_out h w"]:
        """x has magnitude 1. t: ln(sigma) / 4, "c_noise". The label `classes` means no label."""
        emb = self._embed(t, labels)
        h = self.stem(torch.cat([x, torch.ones_like(x[:, :1])], dim=1))
        skips = [h]
        for block in self.encoder:
            h = block(h, emb)
            skips.append(h)
        for block, takes_skip in zip(self.decoder, self._takes_skip, strict=True):
            if takes_skip:
                h = mp_cat(h, skips.pop(), self.config.concat_balance)
            h = block(h, emb)
        return self.out(h, self.out_gain)

    def _embed(self, t: Tensor, labels: Tensor | None) -> Float[Tensor, "b c_emb"]:
        emb = self.noise(self.fourier(t))
        if self.label is not None:
            assert labels is not None, "a class-conditional network takes labels"
            # No label is a vector of zeros, as in the authors' code. The factor gives a label magnitude 1.
            one_hot = F.one_hot(labels, self.classes + 1)[:, : self.classes].to(self.fourier.frequencies.dtype)
            emb = mp_sum(emb, self.label(self.classes**0.5 * one_hot), self.config.label_balance)
        return mp_silu(emb)
