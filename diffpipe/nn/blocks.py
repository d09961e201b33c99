"""The building blocks of the convolutional networks: residual block, self-attention, resampling, embeddings."""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import torch
from einops import rearrange
from jaxtyping import Float, Real
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

M = TypeVar("M", bound=nn.Module)
Resampling = Literal["up", "down"]


def zero_init(module: M) -> M:
    """Set all parameters to zero, so that a residual branch starts as the identity (Ho et al. 2020, appendix B)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def sinusoidal_embedding(
    t: Real[Tensor, " b"], dim: int, *, shift: int = 1, cos_first: bool = False, max_period: float = 10_000.0
) -> Float[Tensor, "b {dim}"]:
    """Sines and cosines of t at dim/2 frequencies, from 1 down by equal factors (Vaswani et al. 2017, section 3.5).

    t: timesteps, whole or not. shift: frequency i is max_period^(-i / (dim/2 - shift)), so with 1 the last one is
    1/max_period exactly (Ho et al. 2020), and with 0 it is a factor above that (Dhariwal & Nichol 2021). cos_first: the
    cosines come before the sines. dim is even. The result is of at least float32.
    """
    half = dim // 2
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device, dtype=t.dtype) / (half - shift))
    angles = t[:, None] * frequencies
    waves = (angles.cos(), angles.sin()) if cos_first else (angles.sin(), angles.cos())
    return torch.cat(waves, dim=1)


class ResBlock(nn.Module):
    """norm → SiLU → conv, twice, with the embedding added between and a skip around (Ho et al. 2020, appendix B).

    c_emb: channels of the embedding; None: the block takes none. eps: the group normalization's.
    """

    def __init__(self, c_in: int, c_out: int, c_emb: int | None, groups: int, dropout: float, eps: float = 1e-5):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.emb = None if c_emb is None else nn.Linear(c_emb, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(
        self, x: Float[Tensor, "b c_in h w"], emb: Float[Tensor, "b c_emb"] | None = None
    ) -> Float[Tensor, "b c_out h w"]:
        h = self.conv1(F.silu(self.norm1(x)))
        if self.emb is not None:
            h = h + rearrange(self.emb(emb), "b c -> b c 1 1")
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.skip(x) + h


def res_blocks(c_in: int, c_out: int, count: int, c_emb: int | None, groups: int) -> nn.ModuleList:
    """`count` residual blocks in sequence, without dropout. The first one changes the channels."""
    return nn.ModuleList(ResBlock(c_out if i else c_in, c_out, c_emb, groups, dropout=0.0) for i in range(count))


class SelfAttention(nn.Module):
    """Multi-head self-attention over the pixels, with a skip around."""

    def __init__(self, channels: int, heads: int, groups: int, eps: float = 1e-5):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels, eps)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        qkv = self.qkv(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        q, k, v = rearrange(qkv, "b n (qkv heads d) -> qkv b heads n d", qkv=3, heads=self.heads)
        y = F.scaled_dot_product_attention(q, k, v)
        y = self.out(rearrange(y, "b heads n d -> b n (heads d)"))
        return x + rearrange(y, "b (h w) c -> b c h w", h=x.shape[2])


def resampled(x: Float[Tensor, "b c h w"], resample: Resampling | None) -> Float[Tensor, "b c _ _"]:
    """x with doubled height and width by nearest neighbours (up), with halved ones by 2×2 means (down), or x itself."""
    if resample == "up":
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.avg_pool2d(x, 2) if resample == "down" else x


class Downsample(nn.Conv2d):
    """Halve height and width with a strided 3×3 convolution.

    padding: zeros on all four sides, or at the end alone, below and to the right, as TensorFlow's "SAME" has it for
    even sizes.
    """

    def __init__(self, channels: int, padding: Literal["both", "end"] = "both"):
        super().__init__(channels, channels, 3, stride=2, padding=1 if padding == "both" else 0)
        self.at_end = padding == "end"

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c _ _"]:  # noqa: A002 (as torch calls it)
        return super().forward(F.pad(input, (0, 1, 0, 1)) if self.at_end else input)


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a 3×3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
