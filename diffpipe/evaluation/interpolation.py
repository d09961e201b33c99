"""Images between two images, through the latents, or between two noises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.loader import sequential_reader
from diffpipe.evaluation.image_sources import GeneratedImages
from diffpipe.evaluation.latent_space import LatentSpace
from diffpipe.evaluation.map_over_ranks import map_over_ranks
from diffpipe.rng import KeyedRNG


class Ends(NamedTuple):
    """The images that rows begin and end with, by their places in the shards, and a row's class, where it matters."""

    first: Int[np.ndarray, " n"]
    last: Int[np.ndarray, " n"]
    labels: Int[Tensor, " n"] | None


def between_images(
    space: LatentSpace, shards: ShardSet, ends: Ends, t: Float[Tensor, " k"]
) -> UInt8[Tensor, "n k2 c h w"]:
    """A row of images for each pair: the first, those decoded on the way at each t, and the last. A collective.

    The way is the arc between normal latents and the straight line between an autoencoder's, which keep to no prior
    that the line could leave.
    """
    way = spherical if space.stage.normal_latents else straight
    z_first, z_last = (space.of_shards(shards, places, ends.labels) for places in ends[:2])
    z = torch.stack([way(z_first, z_last, each.expand(len(z_first))) for each in t], dim=1)
    labels = None if ends.labels is None else ends.labels.repeat_interleave(len(t))
    images = space.images_of(rearrange(z, "n k ... -> (n k) ..."), labels)
    channels, resolution, _ = space.shape
    first, last = (sequential_reader.images(shards, places, resolution, channels)[:, None] for places in ends[:2])
    return torch.cat([first, rearrange(images, "(n k) c h w -> n k c h w", k=len(t)), last], dim=1)


class Between(KeyedRNG):
    """Normals on the arc from those of one position to those of another, and all else as at the first.

    first, last: int64 [b]; t: where on the way, in [0, 1]. So any stage that generates also interpolates.
    """

    def __init__(self, seed: int, first: Int[Tensor, " b"], last: Int[Tensor, " b"], t: Float[Tensor, " b"]):
        super().__init__(seed, first)
        self.last, self.t = KeyedRNG(seed, last), t

    def normal(self, purpose: str, shape: Sequence[int], stream: int = 0) -> Float[Tensor, "b ..."]:
        return spherical(super().normal(purpose, shape, stream), self.last.normal(purpose, shape, stream), self.t)


def between_noises(source: GeneratedImages, t: Float[Tensor, " k"]) -> UInt8[Tensor, "n k c h w"]:
    """A row from the source's image i to another of its class, made of the noises between theirs. A collective."""
    classes, k, device = max(source.shape.classes, 1), len(t), source.runtime.device
    away = classes * -(-source.n // classes)

    def each(chunk: range) -> Tensor:
        cells = torch.tensor(chunk, device=device)
        rows = cells // k
        labels = None
        if source.shape.classes:
            labels = rows % classes if source.label is None else torch.full_like(rows, source.label)
        rng = Between(source.seed, rows, rows + away, t.to(device)[cells % k])
        return source.stage.generate(source.nets, rng, labels).cpu()

    cells = torch.cat(map_over_ranks(source.n * k, each, source.runtime, "sample"))
    return rearrange(cells, "(n k) c h w -> n k c h w", k=k)


def straight(
    a: Float[Tensor, " n *latent"], b: Float[Tensor, " n *latent"], t: Float[Tensor, " n"]
) -> Float[Tensor, " n *latent"]:
    """On the line from a (t = 0) to b (t = 1), row by row."""
    t = t.double().reshape(-1, *[1] * (a.ndim - 1))
    return ((1 - t) * a.double() + t * b.double()).to(a.dtype)


def spherical(
    a: Float[Tensor, " n *latent"], b: Float[Tensor, " n *latent"], t: Float[Tensor, " n"]
) -> Float[Tensor, " n *latent"]:
    """On the arc from a (t = 0) to b (t = 1), row by row (Shoemake 1985).

    Normal latents of many numbers all lie about equally far from zero, and so does the arc between two of them; the
    straight line passes nearer to zero, where there are none (White 2016). Where the two are parallel it is the line.
    """
    flat_a, flat_b, t = a.double().flatten(1), b.double().flatten(1), t.double()[:, None]
    lengths = flat_a.norm(dim=1) * flat_b.norm(dim=1)
    cosine = (flat_a * flat_b).sum(1) / lengths.clamp(min=torch.finfo(torch.float64).tiny)
    angle = cosine.clamp(-1, 1).acos()[:, None]
    sine = angle.sin()
    arc = (((1 - t) * angle).sin() * flat_a + (t * angle).sin() * flat_b) / sine.clamp(min=1e-4)
    return torch.where(sine < 1e-4, (1 - t) * flat_a + t * flat_b, arc).reshape(a.shape).to(a.dtype)
