"""Images moved along the direction in the latents from one class to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Float64, Int, UInt8
from torch import Tensor

from diffpipe.data.index.shard_set import ShardSet
from diffpipe.evaluation.latent_space import LatentSpace

STRENGTHS = (-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
FEWEST = 2  # images of a class: the mean of one is no mean
JUDGED = 100  # moved images that are encoded again to see which class they have come to


class Moved(NamedTuple):
    """Images moved along the direction from one class's mean latent to another's, as `move` describes it."""

    images: UInt8[Tensor, "n strengths c h w"]
    shares: list[float]
    real: tuple[float, float]


def move(space: LatentSpace, shards: ShardSet, source: Int[np.ndarray, " n"], target: Int[np.ndarray, " m"]) -> Moved:
    """Up to `JUDGED` images of the source class, moved by each of the `STRENGTHS`. A collective.

    The direction is the difference of the mean latents of all source and all target images: strength 1 moves the one
    mean to the other. shares: how many of the moved images, decoded and encoded again, lie nearer to the target's mean,
    by strength; real: how many of the real source and of the real target images do.
    """
    z_from, z_to = (space.of_shards(shards, places, None) for places in (source, target))
    z = along(z_from[:JUDGED], direction(z_from, z_to), STRENGTHS)
    images = space.images_of(rearrange(z, "n k ... -> (n k) ..."), None)
    again = rearrange(space.of_images(images, None), "(n k) ... -> k n ...", k=len(STRENGTHS))
    shares = [share_nearer(each, z_from, z_to) for each in again]
    real = share_nearer(z_from, z_from, z_to), share_nearer(z_to, z_from, z_to)
    return Moved(rearrange(images, "(n k) c h w -> n k c h w", k=len(STRENGTHS)), shares, real)


def direction(z_from: Float[Tensor, " n *latent"], z_to: Float[Tensor, " m *latent"]) -> Float64[Tensor, "*latent"]:
    """From the mean of the one to the mean of the other."""
    return z_to.double().mean(0) - z_from.double().mean(0)


def along(
    z: Float[Tensor, " n *latent"], step: Float64[Tensor, "*latent"], strengths: Sequence[float]
) -> Float[Tensor, "n k *latent"]:
    """Each latent with the step added to it at each strength."""
    return torch.stack([(z.double() + strength * step).to(z.dtype) for strength in strengths], dim=1)


def share_nearer(
    z: Float[Tensor, " n *latent"], z_from: Float[Tensor, " _ *latent"], z_to: Float[Tensor, " _ *latent"]
) -> float:
    """How many of the latents are nearer to the mean of `z_to` than to that of `z_from`, as a share."""
    squares = [(z.double() - each.double().mean(0)).flatten(1).square().sum(1) for each in (z_from, z_to)]
    return float((squares[1] < squares[0]).double().mean())
