"""Images and labels of shards in order, unshuffled and without randomness, for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from diffpipe.data.decode.stack import stack_images
from diffpipe.data.index.shard_index import Sample
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.loader.order import sequential
from diffpipe.data.loader.reader import Reader
from diffpipe.resolution import Resolution


def images(
    shard_set: ShardSet, indices: Sequence[int] | np.ndarray, resolution: Resolution | None, channels: int
) -> UInt8[Tensor, "b c h w"]:
    """The images at `indices` of the shards put end to end, unshuffled and without randomness.

    They are resized and cropped at the centre to `resolution`. If it is None, they keep their size, which must be the
    same for all. Raises UserError.
    """
    return stack_images(encoded_images(shard_set, indices), resolution, channels)


def encoded_images(shard_set: ShardSet, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[str, bytes]]:
    """The place, in words, and the image file of each of these samples."""
    reader = Reader(shard_set)
    for shard, sample in _samples(shard_set, indices):
        yield f"{shard_set.paths[shard]}: {sample.key}", reader.image(shard, sample)


def labels(shard_set: ShardSet, indices: Sequence[int] | np.ndarray) -> Int[Tensor, " b"]:
    """The labels at `indices` of the shards put end to end. Raises UserError where one is missing or not an integer."""
    reader = Reader(shard_set)
    return torch.tensor(
        [reader.label(shard, sample) for shard, sample in _samples(shard_set, indices)], dtype=torch.int64
    )


def keys(shard_set: ShardSet, indices: Sequence[int] | np.ndarray) -> list[str]:
    """The samples' names at `indices` of the shards put end to end."""
    return [sample.key for _, sample in _samples(shard_set, indices)]


def _samples(shard_set: ShardSet, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, Sample]]:
    shards, within = sequential(shard_set.counts, np.asarray(indices, dtype=np.int64))
    for shard, i in zip(shards.tolist(), within.tolist(), strict=True):
        yield shard, shard_set.sample(shard, i)
