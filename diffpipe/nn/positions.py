"""Positions of patches in an image: a fixed sine-cosine embedding, and rotations of queries and keys."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

_BASE = 10_000.0


def sincos_embedding(height: int, width: int, dim: int, device: torch.device | None = None) -> Float[Tensor, "n {dim}"]:
    """The fixed embedding of each place of a grid, row by row, float64.

    The first half of the channels holds sines and then cosines of the column at dim/4 frequencies, the second half
    those of the row (Peebles & Xie 2023; the order is that of their code). dim is a multiple of 4.
    """
    rows, columns = _grid(height, width, device)
    frequencies = _frequencies(dim // 4, device)
    halves = [torch.outer(position, frequencies) for position in (columns, rows)]
    return torch.cat([wave for angles in halves for wave in (angles.sin(), angles.cos())], dim=1)


def rotary_angles(height: int, width: int, dim: int, device: torch.device | None = None) -> Float[Tensor, "n {dim}//2"]:
    """The angle by which each pair of a head's channels is rotated at each place of a grid, row by row, float64.

    The first half of the pairs turns with the row, the second half with the column, at dim/4 frequencies each (Su et
    al. 2021, equation 15, along two axes). dim: channels of a head, a multiple of 4.
    """
    return rotary_angles_at(torch.stack(_grid(height, width, device), dim=1), dim)


def rotary_angles_at(positions: Float[Tensor, "n axes"], dim: int) -> Float[Tensor, "n {dim}//2"]:
    """The same for tokens at any positions along one axis or several, which share the pairs equally.

    dim: channels of a head, a multiple of twice the number of axes.
    """
    frequencies = _frequencies(dim // (2 * positions.shape[1]), positions.device)
    return torch.cat([torch.outer(position, frequencies) for position in positions.T], dim=1)


def rotate(x: Float[Tensor, "b heads n d"], angles: Float[Tensor, "n pairs"]) -> Float[Tensor, "b heads n d"]:
    """Each pair of neighbouring channels, rotated by its angle. A product of two such depends on their offset alone."""
    cos, sin = (repeat(wave.to(x.dtype), "n pairs -> n (pairs two)", two=2) for wave in (angles.cos(), angles.sin()))
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = rearrange(torch.stack([-odd, even], dim=-1), "b heads n pairs two -> b heads n (pairs two)")
    return x * cos + turned * sin


def _grid(height: int, width: int, device: torch.device | None) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """The row and the column of each place."""
    rows, columns = (torch.arange(size, dtype=torch.float64, device=device) for size in (height, width))
    return repeat(rows, "h -> (h w)", w=width), repeat(columns, "w -> (h w)", h=height)


def _frequencies(count: int, device: torch.device | None) -> Float[Tensor, " count"]:
    return _BASE ** -(torch.arange(count, dtype=torch.float64, device=device) / count)
