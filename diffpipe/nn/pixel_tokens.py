"""Pixels as tokens in raster order, and what the input of each token shows: tokens before it, and no other."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffpipe.nn.blocks import sinusoidal_embedding
from diffpipe.resolution import Resolution


class Place(NamedTuple):
    """The place of a token in an image: its row, its column, and its number within the pixel."""

    row: int
    column: int
    part: int


class PixelGrid(NamedTuple):
    """How an image becomes tokens: row by row, pixel by pixel, and within a pixel channel by channel.

    levels: the values of a channel, 0 to levels - 1. parts: tokens per pixel, 1 or one for each channel.
    """

    channels: int
    resolution: Resolution
    levels: int
    parts: int

    @property
    def tokens(self) -> int:
        """Tokens per image."""
        return self.resolution.pixels * self.parts

    @property
    def row(self) -> int:
        """Tokens in a row."""
        return self.resolution.width * self.parts

    @property
    def values(self) -> int:
        """Values per token."""
        return self.channels // self.parts

    def place(self, i: int) -> Place:
        """Where token i is."""
        row, rest = divmod(i, self.row)
        return Place(row, *divmod(rest, self.parts))

    def places(self, device: torch.device) -> Float[Tensor, "n 2"]:
        """Row and column of each token, float64. Those of one pixel divide its width, so no two have the same place."""
        tokens = torch.arange(self.tokens, dtype=torch.float64, device=device)
        return torch.stack([tokens // self.row, tokens % self.row / self.parts], dim=1)

    def split(self, images: Integer[Tensor, "b c h w"]) -> Int[Tensor, "b n v"]:
        """The values of each token."""
        return rearrange(images, "b (parts v) h w -> b (h w parts) v", parts=self.parts).long()

    def join(self, tokens: Int[Tensor, "b n v"]) -> Integer[Tensor, "b c h w"]:
        """The image of these tokens."""
        height, parts = self.resolution.height, self.parts
        return rearrange(tokens, "b (h w parts) v -> b (parts v) h w", h=height, parts=parts).to(torch.uint8)


class ValueEmbedding(nn.Module):
    """A learned vector for each value of each channel. It starts as waves over the values: near ones are alike."""

    def __init__(self, grid: PixelGrid, dim: int):
        super().__init__()
        self.levels = grid.levels
        self.table = nn.Embedding(grid.channels * grid.levels, dim)
        waves = sinusoidal_embedding(torch.arange(grid.levels), dim, max_period=float(grid.levels))
        with torch.no_grad():
            self.table.weight.copy_(waves.repeat(grid.channels, 1))

    def forward(self, images: Integer[Tensor, "b c h w"]) -> Float[Tensor, "b c_dim h w"]:
        offsets = self.levels * torch.arange(images.shape[1], device=images.device)
        return rearrange(self.table(images.long() + offsets[:, None, None]), "b c h w dim -> b (c dim) h w")

    def of_channels(self, values: Int[Tensor, "b v"], first: int) -> Float[Tensor, "b v_dim"]:
        """The vectors of the values of channels `first`, first + 1, … of one pixel."""
        offsets = self.levels * torch.arange(first, first + values.shape[1], device=values.device)
        return self.table(values + offsets).flatten(1)


class PreviousToken(nn.Module):
    """A linear map of the token before each token, as in GPT. For the first one it is zero."""

    def __init__(self, grid: PixelGrid, dim: int, width: int):
        super().__init__()
        self.grid = grid
        self.linear = nn.Linear(grid.values * dim, width, bias=False)
        nn.init.normal_(self.linear.weight, std=1 / math.sqrt(grid.values * dim))

    def forward(self, e: Float[Tensor, "b c_dim h w"]) -> Float[Tensor, "b n width"]:
        """e: the embedded values of the image."""
        tokens = rearrange(e, "b (parts v_dim) h w -> b (h w parts) v_dim", parts=self.grid.parts)
        return self.linear(F.pad(tokens[:, :-1], (0, 0, 1, 0)))

    def at(self, e: Float[Tensor, "b c_dim h w"], i: int) -> Float[Tensor, "b 1 width"]:
        """The result for token i. e: of later tokens it may have anything."""
        if i == 0:
            return e.new_zeros(len(e), 1, self.linear.out_features)
        row, column, part = self.grid.place(i - 1)
        size = self.linear.in_features
        return self.linear(e[:, part * size : (part + 1) * size, row, column])[:, None]


class CausalNeighbourhood(nn.Module):
    """A linear map of the pixels around each token that come before it, and of the earlier channels of its own pixel:
    the masked convolution of PixelCNN (van den Oord et al. 2016), in parts that need no mask.

    reach: how many rows above it shows, and how many columns to each side. Outside of the image all is zero.
    """

    def __init__(self, grid: PixelGrid, dim: int, width: int, reach: int):
        super().__init__()
        channels, out = grid.channels * dim, grid.parts * width
        self.grid, self.dim, self.width, self.reach = grid, dim, width, reach
        self.above = nn.Conv2d(channels, out, (reach, 2 * reach + 1), bias=False)
        self.left = nn.Conv2d(channels, out, (1, reach), bias=False)
        self.earlier = nn.ModuleList(nn.Linear(part * dim, width, bias=False) for part in range(1, grid.parts))
        pixels = reach * (2 * reach + 2)
        for layer in (self.above, self.left, *self.earlier):
            nn.init.normal_(layer.weight, std=1 / math.sqrt(channels * pixels))  # pyright: ignore[reportArgumentType]

    def forward(self, e: Float[Tensor, "b c_dim h w"]) -> Float[Tensor, "b n width"]:
        """e: the embedded values of the image."""
        reach = self.reach
        h = self.above(F.pad(e[:, :, :-1], (reach, reach, reach, 0)))
        h = h + self.left(F.pad(e[:, :, :, :-1], (reach, 0, 0, 0)))
        h = rearrange(h, "b (parts width) h w -> b h w parts width", parts=self.grid.parts)
        if self.earlier:
            pixels = rearrange(e, "b c_dim h w -> b h w c_dim")
            own = [layer(pixels[..., : part * self.dim]) for part, layer in enumerate(self.earlier, start=1)]
            h = h + torch.stack([torch.zeros_like(own[0]), *own], dim=3)
        return rearrange(h, "b h w parts width -> b (h w parts) width")

    def at(self, e: Float[Tensor, "b c_dim h w"], i: int) -> Float[Tensor, "b 1 width"]:
        """The result for token i. e: of later tokens it may have anything."""
        row, column, part = self.grid.place(i)
        reach, end = self.reach, self.grid.resolution.width
        seen = e[:, :, max(0, row - reach) : row + 1, max(0, column - reach) : column + reach + 1]
        outside = (max(0, reach - column), max(0, column + reach + 1 - end), max(0, reach - row), 0)
        window = F.pad(seen, outside)
        out = slice(part * self.width, (part + 1) * self.width)
        h = F.linear(window[:, :, :-1].flatten(1), self.above.weight[out].flatten(1))
        h = h + F.linear(window[:, :, -1, :reach].flatten(1), self.left.weight[out].flatten(1))
        if part:
            h = h + self.earlier[part - 1](e[:, : part * self.dim, row, column])
        return h[:, None]
