"""The UNet of Dhariwal & Nichol 2021 ("Diffusion Models Beat GANs on Image Synthesis", arXiv:2105.05233), ADM."""

from __future__ import annotations

from typing import Literal

from einops import rearrange
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffpipe.errors import UserError
from diffpipe.nn.blocks import Resampling, SelfAttention, resampled, zero_init
from diffpipe.nn.levels import Positive
from diffpipe.nn.unet import UNet, UNetShapeConfig
from diffpipe.resolution import Resolution


class ADMConfig(UNetShapeConfig):
    """Width, depth and attention. The defaults are the ImageNet-64 network of Dhariwal & Nichol 2021, table 11."""

    kind: Literal["adm"]
    """The UNet of Dhariwal & Nichol 2021: the embedding scales and shifts, and residual blocks change the
    resolution."""
    channels: Positive = 192
    """Channels at full resolution."""
    channel_mult: tuple[Positive, ...] = Field(default=(1, 2, 3, 4), min_length=1)
    """Channels of each level as multiples of `channels`, from full resolution down. Each level after the first halves
    the resolution."""
    blocks: Positive = 3
    """Residual blocks per level in the encoder; the decoder has one more."""
    attention: tuple[Positive, ...] = (32, 16, 8)
    """Levels where every residual block is followed by self-attention, by the shorter side of their features in pixels.
    The middle always has it."""
    head_channels: Positive = 64
    """Channels of an attention head. Wider levels have more heads."""
    heads: Positive | None = None
    """Attention heads at every level, in the place of `head_channels`, as the ImageNet-128 network has 4. null: by
    `head_channels`."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the variance in group normalization."""
    frequency_shift: Literal[0, 1] = 0
    """Frequency i of the timestep embedding is 10000^(-i / (channels/2 - frequency_shift))."""
    cos_first: bool = True
    """The cosines of the timestep embedding come before the sines."""

    def build(self, channels: int, resolution: Resolution, classes: int = 0, out_channels: int | None = None) -> UNet:
        """The network for images of this shape. Raises UserError where they do not fit.

        out_channels: None: as many as `channels`.
        """
        return UNet(self, channels, resolution, classes, out_channels)

    def residual(self, c_in: int, c_out: int, resample: Resampling | None = None) -> nn.Module:
        return ScaleShiftBlock(c_in, c_out, 4 * self.channels, self.groups, self.dropout, self.norm_eps, resample)

    def self_attention(self, channels: int) -> nn.Module:
        return SelfAttention(channels, self.heads_of(channels), self.groups, self.norm_eps)

    def heads_of(self, channels: int) -> int:
        """The attention heads at this width. Raises UserError where they do not divide it."""
        key, divisor = ("heads", self.heads) if self.heads else ("head_channels", self.head_channels)
        if channels % divisor:
            raise UserError(
                f"stage.network.{key} {divisor} does not divide the width {channels} of a level with attention; choose "
                f"another, or other channels"
            )
        return self.heads or channels // self.head_channels

    def downsample(self, channels: int) -> nn.Module:
        return self.residual(channels, channels, "down")

    def upsample(self, channels: int) -> nn.Module:
        return self.residual(channels, channels, "up")

    def initialize(self, net: nn.Module) -> None:
        """Torch's own initialization, and the zeros that the layers start with, as in the authors' code."""


class ScaleShiftBlock(nn.Module):
    """A residual block whose second normalization is scaled and shifted by the embedding (section 3.1, "AdaGN").

    resample: "up" doubles height and width of the input and of the skip by nearest neighbours before the first
    convolution, "down" halves them by 2×2 means.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        c_emb: int,
        groups: int,
        dropout: float,
        eps: float,
        resample: Resampling | None = None,
    ):
        super().__init__()
        self.resample: Resampling | None = resample
        self.norm1 = nn.GroupNorm(groups, c_in, eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.emb = nn.Linear(c_emb, 2 * c_out)
        self.norm2 = nn.GroupNorm(groups, c_out, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Float[Tensor, "b c_in h w"], emb: Float[Tensor, "b c_emb"]) -> Float[Tensor, "b c_out _ _"]:
        scale, shift = rearrange(self.emb(emb), "b c -> b c 1 1").chunk(2, dim=1)
        h = self.conv1(resampled(F.silu(self.norm1(x)), self.resample))
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(resampled(x, self.resample)) + self.conv2(self.dropout(F.silu(h)))
